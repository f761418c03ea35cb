"""A recipe of Megatron-Bridge, read from its source: what each assignment to its configuration says.

``AutoBridge.from_hf_pretrained("...")`` asks the model hub when it runs. Here its name is looked up in configs, and no
line of the source is executed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from slipway.configs import Refusal, nearest

_MOST_LINES = 20_000
_DEEPEST = 5  # functions that call functions
_HUB = "from_hf_pretrained"
HF = "hf_pretrained"
"""Path under which the name of a Hugging Face model is kept."""


_ADAM = ("distributed_fused_adam_with_cosine_annealing", "distributed_fused_adam_with_cosine_annealing_samples")
"""Functions of recipes/utils/optimizer_utils.py, which give an optimizer and a schedule."""


class _Unknown(Exception):
    """An expression that is not a constant."""


class Lost(NamedTuple):
    """A value that was not understood: its path, if it has one, and the source."""

    path: str
    text: str


@dataclass
class Read:
    """What a recipe's function assigns."""

    tree: dict[str, Any] = field(default_factory=dict)
    unknown: list[Lost] = field(default_factory=list)


def assignments(path: Path, function: str) -> Read:
    """What a recipe's function assigns to the configuration that it returns, with what the functions it calls assign.

    Raises:
        Refusal: no such function, or the file is not Python.
    """
    modules = _Modules(path)
    read = Read()
    modules.follow(path, function, read, 0)
    return read


class _Modules:
    def __init__(self, path: Path) -> None:
        self._trees: dict[Path, ast.Module] = {}

    def tree(self, path: Path) -> ast.Module:
        if path not in self._trees:
            try:
                text = path.read_text()
                if text.count("\n") > _MOST_LINES:
                    raise Refusal(f"{path} has more than {_MOST_LINES:,} lines", "Give the file of a recipe.")
                self._trees[path] = ast.parse(text)
            except (SyntaxError, UnicodeDecodeError, OSError, ValueError, RecursionError) as error:
                raise Refusal(f"{path} is not Python: {error}", "Correct it.") from None
        return self._trees[path]

    def constants(self, path: Path) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for node in self.tree(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                try:
                    value = _value(node.value, out)
                except _Unknown:
                    continue
                out |= {target.id: value for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.ImportFrom):
                beside = _beside(path, node)
                if beside and beside != path:
                    theirs = self.constants(beside) if len(self._trees) < 20 else {}
                    out |= {name.asname or name.name: theirs[name.name] for name in node.names if name.name in theirs}
        return out

    def follow(self, path: Path, function: str, read: Read, depth: int) -> None:
        functions = {node.name: node for node in self.tree(path).body if isinstance(node, ast.FunctionDef)}
        made = functions.get(function)
        if made is None:
            raise Refusal(f"{path} has no function {function}; {nearest(function, functions)}")
        names = self.constants(path) | _defaults(made)
        for node in made.body:
            self._statement(path, node, names, read, depth)

    def _statement(self, path: Path, node: ast.stmt, names: dict[str, Any], read: Read, depth: int) -> None:
        if isinstance(node, ast.If):
            try:
                chosen = node.body if _value(node.test, names) else node.orelse
            except _Unknown:
                read.unknown.append(Lost("", f"line {node.lineno}: if {ast.unparse(node.test)}"))
                return
            for inner in chosen:
                self._statement(path, inner, names, read, depth)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(path, node, names, read, depth)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            made = ast.Assign([node.target], node.value, lineno=node.lineno)
            self._assign(path, made, names, read, depth)
        elif not isinstance(node, ast.Return | ast.Pass | ast.Import | ast.ImportFrom) and not _is_text(node):
            read.unknown.append(Lost("", f"line {node.lineno}: {ast.unparse(node)[:60]}"))

    def _assign(self, path: Path, node: ast.Assign, names: dict[str, Any], read: Read, depth: int) -> None:
        target, called = node.targets[0], _called(node.value, names)
        if isinstance(target, ast.Name) and called and depth < _DEEPEST and called[-1] != HF:
            file = self._file_of(path, called[0]) if called[0] not in _ADAM and not called[0][0].isupper() else None
            if file:
                self.follow(file, called[0], read, depth + 1)
                return
        try:
            value = _value(node.value, names)
        except _Unknown:
            if isinstance(target, ast.Attribute):
                path_ = ast.unparse(target).partition(".")[2]
                read.unknown.append(Lost(path_, f"line {node.lineno}: {ast.unparse(node)[:60]}"))
            return
        if isinstance(target, ast.Tuple) and isinstance(value, list) and len(value) == len(target.elts):
            names |= {ast.unparse(each): part for each, part in zip(target.elts, value, strict=True)}
        elif isinstance(target, ast.Name):
            names[target.id] = value
            if isinstance(value, dict) and value.get("_target_") == "ConfigContainer":
                read.tree.update(value)
        elif key := ast.unparse(target).partition(".")[2]:
            _set(read.tree, key, value)

    def _file_of(self, path: Path, function: str) -> Path | None:
        """The file that defines a function which a file calls: itself, or one beside it that it imports from."""
        for node in self.tree(path).body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return path
            if isinstance(node, ast.ImportFrom) and any((n.asname or n.name) == function for n in node.names):
                return _beside(path, node)
        return None


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _defaults(made: ast.FunctionDef) -> dict[str, Any]:
    positional = made.args.args[len(made.args.args) - len(made.args.defaults) :]
    pairs = [*zip(positional, made.args.defaults, strict=True)]
    pairs += [(name, value) for name, value in zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True) if value]
    out = {}
    for name, value in pairs:
        try:
            out[name.arg] = _value(value, {})
        except _Unknown:
            continue
    return out


def _beside(path: Path, node: ast.ImportFrom) -> Path | None:
    """The file of a module in the same package tree: ``megatron.bridge.recipes.common`` from a file of recipes."""
    names = (node.module or "").split(".")
    if node.level:
        file = path.parents[node.level - 1].joinpath(*names).with_suffix(".py")
        return file if file.is_file() else None
    for parent in path.parents:
        if parent.name == names[0]:
            file = parent.joinpath(*names[1:]).with_suffix(".py")
            return file if file.is_file() else None
    return None


def _called(node: ast.expr, names: dict[str, Any]) -> tuple[str, ...] | None:
    """The name of a called function; of a model from the hub, its name and ``hf_pretrained``."""
    while isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name):
            return (function.id,)
        if not isinstance(function, ast.Attribute):
            return None
        if function.attr == _HUB and node.args:
            try:
                return (str(_value(node.args[0], names)), HF)
            except _Unknown:
                return None
        node = function.value
    return None


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of a constant expression; of a name of a library, its text.

    Raises:
        _Unknown: it is something else.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _value(k, names): _value(v, names) for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("torch.", "AttnBackend.", "F.")):
        return ast.unparse(node)
    if isinstance(node, ast.Call):
        return _made(node, names)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        inner = _value(node.operand, names)
        return -inner if isinstance(node.op, ast.USub) else not inner
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Add | ast.FloorDiv):
        return _computed(node, names)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Is | ast.IsNot):
        same = _value(node.left, names) is _value(node.comparators[0], names)
        return same == isinstance(node.ops[0], ast.Is)
    raise _Unknown


def _made(node: ast.Call, names: dict[str, Any]) -> Any:
    """What a call of a class is given, without what is no constant; a model of the hub, by its name."""
    called = _called(node, names)
    if called and called[-1] == HF:
        return {HF: called[0]}
    if not isinstance(node.func, ast.Name):
        raise _Unknown
    given: dict[str, Any] = {}
    for word in node.keywords:
        try:
            given[word.arg or ""] = _value(word.value, names)
        except _Unknown:
            continue
    if node.func.id in _ADAM:
        high = given.get("max_lr", 1e-4)
        constants = {key: value for key, value in given.items() if key.startswith(("adam_", "weight_", "clip_"))}
        optimizer = {"lr": high, "min_lr": given.get("min_lr") or 0.1 * high, "use_distributed_optimizer": True}
        schedule = {"lr_decay_style": "cosine", "lr_warmup_iters": 2000} | {
            key: value for key, value in given.items() if key.startswith("lr_")
        }
        usual = {"weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "clip_grad": 1.0}
        return [optimizer | usual | constants, schedule]
    if not node.func.id[0].isupper():
        raise _Unknown
    name = node.func.id
    if "Provider" in name:
        given[HF] = name.replace("ModelProvider", "").replace("Provider", "")
    return {"_target_": name} | given


def _computed(node: ast.BinOp, names: dict[str, Any]) -> Any:
    a, b = _value(node.left, names), _value(node.right, names)
    numbers = all(isinstance(x, int | float) and abs(x) < 1e15 for x in (a, b))
    if not numbers or (isinstance(node.op, ast.FloorDiv) and not b):
        raise _Unknown
    return a * b if isinstance(node.op, ast.Mult) else a + b if isinstance(node.op, ast.Add) else a // b


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value
