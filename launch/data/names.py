"""Instructions that the repository makes: of which kind a name of Python's standard library is. Imports no torch.

The kinds come from the library's source code (a class, a function, or a constant at the top of a module), and a model
has to tell them from the name. The kinds are equally frequent, so that guessing is right for one name of three.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ANSWERS = {"class": " class", "function": " function", "constant": " constant"}
HELD_OUT = 60  # names that training does not see
_SHORTEST = 4  # characters of a name: shorter ones say too little


def write_instructions(folder: Path, most: int, seed: int = 1) -> tuple[int, int]:
    """Write training.jsonl and validation.jsonl, whose names training does not see.

    Args:
        most: names of the training set.

    Returns:
        The number of training examples and of held-out ones.
    """
    dice = random.Random(seed)
    by_kind: dict[str, list[str]] = {kind: [] for kind in ANSWERS}
    for name, kind in sorted(_kinds().items()):
        by_kind[kind].append(name)
    for names in by_kind.values():
        dice.shuffle(names)
    each = min(len(names) for names in by_kind.values())
    held_out, training = HELD_OUT // len(by_kind), min(each - HELD_OUT // len(by_kind), most // len(by_kind))
    folder.mkdir(parents=True)
    counts = []
    for file, start, count in (("training.jsonl", held_out, training), ("validation.jsonl", 0, held_out)):
        lines = [
            {"prompt": f"{name} is a", "completion": ANSWERS[kind]}
            for kind, names in by_kind.items()
            for name in names[start : start + count]
        ]
        dice.shuffle(lines)
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        counts.append(len(lines))
    return counts[0], counts[1]


def _kinds() -> dict[str, str]:
    """The names that modules of the standard library define at their top, if all modules agree on their kind."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for name, kind in _defined(ast.parse(path.read_bytes())):
            if len(name) >= _SHORTEST and not name.startswith("_"):
                found.setdefault(name, set()).add(kind)
    return {name: kinds.pop() for name, kinds in found.items() if len(kinds) == 1}


def _defined(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, "class"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, "function"
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, "constant"
