"""Megatron-LM's command-line arguments as data: name, type, default and choices, read from its source and not imported.

python -m benchmarks.arguments /path/to/Megatron-LM core_v0.15.3 --write
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipway.configs.files import ROOT

SOURCES = ("megatron/training/arguments.py", "megatron/post_training/arguments.py")
FOLDER = ROOT / "megatron_lm"
# Values that the source computes, as they are on one machine without options of the environment.
COMPUTED: dict[str, Any] = {
    "AttnBackend.auto": "auto",
    "list(AttnBackend)": ["flash", "fused", "unfused", "local", "auto"],
    "int(os.getenv('WORLD_SIZE', '1'))": 1,
    "int(os.getenv('LOCAL_RANK', '0'))": 0,
    "range(0, 3)": [0, 1, 2],
    "2 ** 32": 2**32,
}
KINDS = {"int": "int", "float": "float", "bool": "bool"}  # every other type is kept as the text that was given
FLAGS = {"store_true": True, "store_false": False}


def show(repository: Path, commit: str, path: str) -> str:
    """A file at a commit."""
    return subprocess.run(
        ["git", "-C", repository, "show", f"{commit}:{path}"], check=True, capture_output=True, text=True
    ).stdout


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED.get(ast.unparse(node))  # None: its default is computed, or its choices are not checked


def arguments(source: str) -> Iterator[dict[str, Any]]:
    """Every ``add_argument`` of a source file, in order, with the group of the function that it stands in."""
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        group = (
            function.name.removeprefix("_add_").removeprefix("add_").removesuffix("_args").removesuffix("_arguments")
        )
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
                yield _argument(call, group)


def _argument(call: ast.Call, group: str) -> dict[str, Any]:
    flags = [ast.literal_eval(word) for word in call.args]
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    long = next(flag for flag in flags if flag.startswith("--"))
    found: dict[str, Any] = {
        "flags": flags,
        "dest": _value(options["dest"]) if "dest" in options else long[2:].replace("-", "_"),
        "group": group,
    }
    action = _value(options["action"]) if "action" in options else None
    if action in FLAGS:
        stored = FLAGS[action]
        default = _value(options["default"]) if "default" in options else not stored
        return found | {"stores": stored, "default": default}
    if "action" in options:
        opposite = f"--no-{long[2:]}"
        return found | {"stores": True, "opposite": opposite, "default": _value(options["default"])}
    kind = KINDS.get(ast.unparse(options["type"]), "str") if "type" in options else "str"
    found |= {"kind": kind, "default": _value(options["default"]) if "default" in options else None}
    for key in ("nargs", "choices"):
        if key in options and (value := _value(options[key])) is not None:
            found[key] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="a clone of github.com/NVIDIA/Megatron-LM")
    parser.add_argument("tag", help="for example core_v0.15.3")
    parser.add_argument("--write", action="store_true", help="store it in configs/megatron_lm")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "-C", options.repository, "rev-parse", f"{options.tag}^{{commit}}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    found = [item for path in SOURCES for item in arguments(show(options.repository, options.tag, path))]
    head = {
        "version": options.tag,
        "source": f"github.com/NVIDIA/Megatron-LM at {commit}: {', '.join(SOURCES)}",
        "command": f"python -m benchmarks.arguments MEGATRON_LM {options.tag} --write",
    }
    lines = ",\n".join("  " + json.dumps(item) for item in found)
    text = json.dumps(head, indent=1)[:-2] + ',\n "arguments": [\n' + lines + "\n ]\n}\n"
    if options.write:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{options.tag}.json").write_text(text)
    else:
        print(text, end="")
    print(f"{len(found)} arguments of {options.tag}")


if __name__ == "__main__":
    main()
