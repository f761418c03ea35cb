"""The structure of the code: imports go one way, functions are small (docs/explanation/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "configs": set(),
    "planner": {"configs"},
    "recipes": {"configs", "planner"},
    "launch": {"configs", "planner", "recipes"},
}
LONGEST = 50  # lines of a function, its signature and docstring included
REASON = "Long because"  # a function that is longer says why in a comment or its docstring

FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def _imported(tree: ast.AST) -> Iterator[str]:
    """The dotted name of every module or member that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_arrows_point_one_way(package: str) -> None:
    ours = 0
    for path in (ROOT / package).rglob("*.py"):
        for name in _imported(ast.parse(path.read_text())):
            top, *rest = name.split(".")
            if top == "slipway" and rest and rest[0] in MAY_IMPORT:
                ours += 1
                assert rest[0] in MAY_IMPORT[package] | {package}, f"{path} imports {name}"
            assert top not in MAY_IMPORT, f"{path} imports {name}: ours is slipway.{name}"
            if package in ("configs", "planner"):
                assert top not in ("torch", "nemo", "nemo_run", "megatron", "scipy"), f"{path} imports {name}"
    assert ours, "a test that reads no import proves nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_long_functions_say_why(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1  # type: ignore[operator]
            body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            assert length <= LONGEST or REASON in body, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
