"""How many files of a clone ``check`` understands: every launch script and model_config.yaml below a folder.

python -m benchmarks.corpus /path/to/Megatron-LM [--verbose]
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter, defaultdict
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch import foreign
from slipway.launch.cli.readable import judge

PATTERNS = ("examples/**/*.sh", "tests/functional_tests/test_cases/**/model_config.yaml")
JUDGED = ("legal, read completely", "legal, with arguments not understood", "refused by a rule", "too large")


def outcome(path: Path) -> tuple[str, str]:
    """What ``check`` makes of a file: a class, and its reason or the arguments that were not understood."""
    try:
        reading = foreign.read(path, foreign.Request())
        verdict = judge(reading, reading.resolved.spec)
    except Refusal as refusal:
        return "not read as a training run", refusal.sentence()
    except Exception:
        return "FAULT", traceback.format_exc().strip().rpartition("\n")[2]
    if not verdict.legal:
        return JUDGED[2], "; ".join(f"{found.rule}: {found.message}" for found in verdict.violations)
    if not verdict.fits:
        return JUDGED[3], ""
    if reading.unknown:
        return JUDGED[1], ", ".join(reading.unknown)
    return JUDGED[0], ", ".join(reading.not_modelled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkout of github.com/NVIDIA/Megatron-LM")
    parser.add_argument("--verbose", action="store_true", help="print the reason of every file")
    options = parser.parse_args()
    for pattern in PATTERNS:
        found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for path in sorted(options.folder.glob(pattern)):
            kind, why = outcome(path)
            found[kind].append((path, why))
        print(f"{pattern}: {sum(map(len, found.values()))} files")
        for kind, files in sorted(found.items(), key=lambda item: -len(item[1])):
            print(f"  {len(files):4} {kind}")
            if options.verbose:
                for path, why in files:
                    print(f"         {path.relative_to(options.folder)}: {why}")
        rules = Counter(why.partition(":")[0] for _, why in found[JUDGED[2]])
        print("       rules:", ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) or "none")


if __name__ == "__main__":
    main()
