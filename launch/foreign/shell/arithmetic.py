"""The shell's integer arithmetic."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

_LARGEST = 1 << 62
_MOST_SHIFTED = 62  # bits, and the largest exponent

_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: lambda a, b: a - b * int(a / b),
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    ast.Pow: lambda a, b: a ** min(b, _MOST_SHIFTED),
    ast.LShift: lambda a, b: a << min(b, _MOST_SHIFTED),
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_COMPARED: Mapping[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class NotArithmetic(ValueError):
    """The expression is not one that can be computed here."""


def compute(expression: str, value_of: Callable[[str], int]) -> int:
    """The value of an expression such as ``GPUS_PER_NODE * NNODES``.

    Args:
        value_of: the number that a variable holds.

    Raises:
        NotArithmetic: it is something else, or divides by zero, or its value leaves 64 bits.
    """
    text = expression.strip() or "0"
    choice = re.fullmatch(r"([^?]+)\?([^:?]+):([^:?]+)", text)
    if choice:
        taken = choice[2] if compute(choice[1], value_of) else choice[3]
        return compute(taken, value_of)
    text = text.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text)
    try:
        value = _node(ast.parse(text.strip(), mode="eval").body, value_of)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, OverflowError) as error:
        raise NotArithmetic(expression) from error
    if abs(value) > _LARGEST:
        raise NotArithmetic(expression)
    return value


def _node(node: ast.expr, value_of: Callable[[str], int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return value_of(node.id)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_node(node.left, value_of), _node(node.right, value_of))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.UAdd):
        value = _node(node.operand, value_of)
        return int(not value) if isinstance(node.op, ast.Not) else value if isinstance(node.op, ast.UAdd) else -value
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        left, right = _node(node.left, value_of), _node(node.comparators[0], value_of)
        return int(_COMPARED[type(node.ops[0])](left, right))
    if isinstance(node, ast.BoolOp):
        values = [_node(value, value_of) for value in node.values]
        return int(all(values) if isinstance(node.op, ast.And) else any(values))
    raise NotArithmetic(ast.unparse(node))
