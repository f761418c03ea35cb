"""How much of public repositories ``check`` understands: launch scripts, configurations and recipes.

python -m benchmarks.corpus MEGATRON_LM [NEMO_FRAMEWORK_LAUNCHER MEGATRON_BRIDGE] [--nemo] [--verbose]

Clones of github.com/NVIDIA/Megatron-LM, NVIDIA/NeMo-Framework-Launcher and NVIDIA-NeMo/Megatron-Bridge; ``--nemo`` adds
every recipe of the NeMo that is installed.
"""

from __future__ import annotations

import argparse
import ast
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch import foreign
from slipway.launch.cli.readable import judge
from slipway.launch.foreign.kinds.nemo_recipe import factories, read_targets

PATTERNS = (
    "examples/**/*.sh",
    "tests/functional_tests/test_cases/**/model_config.yaml",
    "launcher_scripts/conf/training/**/*.yaml",
    "**/megatron/bridge/recipes/**/*.py",
)
JUDGED = ("legal, read completely", "legal, with arguments not understood", "refused by a rule", "too large")
NOT_READ = "not read as a training run"
Outcome = tuple[str, str]
"""A class, and its reason or the arguments that were not understood."""


def of_reading(reading: foreign.Reading) -> Outcome:
    """What ``check`` says of a run that was read."""
    verdict = judge(reading, reading.resolved.spec)
    if not verdict.legal:
        return JUDGED[2], "; ".join(f"{found.rule}: {found.message}" for found in verdict.violations)
    if not verdict.fits:
        return JUDGED[3], ""
    if reading.unknown:
        return JUDGED[1], ", ".join(reading.unknown)
    return JUDGED[0], ", ".join(reading.not_modelled)


def outcome(name: str) -> Outcome:
    """What ``check`` makes of a file, or of a function."""
    try:
        return of_reading(foreign.read(Path(name), foreign.Request()))
    except Refusal as refusal:
        return NOT_READ, refusal.sentence()
    except Exception:
        return "FAULT", traceback.format_exc().strip().rpartition("\n")[2]


def names(path: Path) -> Iterator[str]:
    """What is checked of a file: itself, or each recipe that it defines."""
    if path.suffix != ".py":
        yield str(path)
        return
    for node in ast.parse(path.read_text()).body:
        recipe = isinstance(node, ast.FunctionDef) and node.name.endswith("_config") and not node.name.startswith("_")
        if recipe and "utils" not in path.parts:
            yield f"{path}:{node.name}"  # type: ignore[attr-defined]


def of_nemo() -> Iterator[tuple[str, Outcome]]:
    """What ``check`` makes of every recipe of NeMo; all are configured by one process."""
    asked = [f"nemo:{name}:{task}" for name in factories() for task in ("pretrain", "finetune")]
    found = read_targets([(name, foreign.Request()) for name in asked])
    for name, reading in zip(asked, found, strict=True):
        if isinstance(reading, Refusal):
            if "has no function" not in reading.message:
                yield name, (NOT_READ, reading.sentence())
        else:
            yield name, of_reading(reading)


def report(title: str, outcomes: list[tuple[str, Outcome]], verbose: bool) -> None:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, (kind, why) in outcomes:
        found[kind].append((name, why))
    print(f"{title}: {len(outcomes)}")
    for kind, files in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"  {len(files):4} {kind}")
        if verbose:
            for name, why in files:
                print(f"         {name}: {why}")
    rules = Counter(why.partition(":")[0] for _, why in found[JUDGED[2]])
    print("       rules:", ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) or "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="clones of the repositories")
    parser.add_argument("--nemo", action="store_true", help="every recipe of the installed NeMo too")
    parser.add_argument("--verbose", action="store_true", help="print the reason of every file")
    options = parser.parse_args()
    for folder in options.folders:
        for pattern in PATTERNS:
            if paths := sorted(folder.glob(pattern)):
                outcomes = [(name, outcome(name)) for path in paths for name in names(path)]
                report(f"{folder.name}/{pattern}", outcomes, options.verbose)
    if options.nemo:
        report("NeMo's recipes", list(of_nemo()), options.verbose)


if __name__ == "__main__":
    main()
