"""Regenerate every picture, generated page and quoted number of README and docs/: the command of `make docs-figures`.

    python -m benchmarks.figures                      what needs no tables: pictures of plans, schedules; quotes
    python -m benchmarks.figures --truth FOLDER       also docs/img/accuracy.png and docs/accuracy.md
    python -m benchmarks.figures --compare A B        also docs/img/compare.png, from two sets of runs

FOLDER contains the tables of published measurements (throughput.csv, memory.csv, megatron_golden_memory.csv), which
are not part of this repository; the environment variable TRUTH may name it instead. The runs of --compare take about a
quarter of an hour to train: see benchmarks.gpu.curves. The accuracy report takes twenty-three minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.quotes import refresh_accuracy, refresh_answers, refresh_cases
from slipway import configs, planner
from slipway.planner.pictures import draw_goodput, draw_plan, draw_schedule, draw_sizes
from slipway.planner.scale import Goal, best_size, sizes

DOCS = Path(__file__).parents[1] / "docs"
TRUTH = "TRUTH"  # environment variable: the folder of tables
PREDICTED_GPU = "h200"  # of the table in docs/gpu.md
# The example of the README and of docs/: a model whose layouts differ and whose published layout is among them.
PLANNED_RECIPE, PLANNED_OVERRIDES, PLANNED_LAYOUTS = "llama3_70b", ["gpus=64", "layout.gbs=128"], 12

SIZED_OVERRIDES, SIZED_GPUS = ["tokens=1T", "price=2.5"], (64, 128, 256, 512, 1024, 2048)
SIZED_DEADLINE_S = 40 * 86_400.0
GOODPUT_RECIPE, GOODPUT_OVERRIDES = "llama31_405b", ["gpus=16384"]

DRAWN_SCHEDULES = ("deepseek_v3", "llama31_405b")


def draw_plan_example(path: Path) -> None:
    """Memory and speed of the best layouts of the example."""
    resolved = configs.load(PLANNED_RECIPE, PLANNED_OVERRIDES)
    found = planner.plan_pinned(resolved.spec, resolved.pinned, PLANNED_LAYOUTS, resolved.untouched)
    with tempfile.TemporaryDirectory() as folder:
        drawn, *_ = draw_plan(found, Path(folder) / "plan")
        shutil.copy(drawn, path)


def draw_sizes_example(path: Path) -> None:
    """Days against dollars of a run at several sizes."""
    resolved = configs.load(PLANNED_RECIPE, SIZED_OVERRIDES)
    found = list(sizes(resolved, SIZED_GPUS, SIZED_DEADLINE_S))
    with tempfile.TemporaryDirectory() as folder:
        best = best_size(found, Goal.dollars)
        drawn, *_ = draw_sizes(found, best, SIZED_DEADLINE_S, Path(folder) / "sizes", resolved.title)
        shutil.copy(drawn, path)


def draw_goodput_example(path: Path) -> None:
    """Goodput of the largest published run over the interval between two saves."""
    spec = planner.complete(configs.load(GOODPUT_RECIPE, GOODPUT_OVERRIDES))
    run = planner.course(spec)
    found = planner.goodput(spec, run.parts[-1].step_time_s)
    with tempfile.TemporaryDirectory() as folder:
        title = f"{spec.name} on {spec.gpus:,} {spec.gpu.name.upper()}"
        drawn, *_ = draw_goodput(found, run.seconds, Path(folder) / "goodput", title)
        shutil.copy(drawn, path)


def write_accuracy(truth: Path, docs: Path, processes: int) -> None:
    """docs/img/accuracy.png and docs/accuracy.md."""
    from benchmarks.accuracy.cross_validation import judge
    from benchmarks.accuracy.report import report
    from benchmarks.accuracy.scatter import draw

    judged = judge(truth / "throughput.csv", processes)
    draw(judged, docs / "img" / "accuracy.png")
    (docs / "accuracy.md").write_text(report(truth, judged))


def draw_comparison(runs: list[str], path: Path) -> None:
    """The losses of two runs, or of two sets of runs named by a pattern, as `slipway compare` draws them."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "slipway.launch.cli", "compare", *runs, "--out", folder], check=True)
        shutil.copy(Path(folder) / "compare.png", path)


def refresh_quotes(docs: Path) -> list[Path]:
    """Update the numbers that README and the pages of ``docs`` quote. Returns the files that changed."""
    report = docs / "accuracy.md"
    changed = []
    for page in [docs.parent / "README.md", *sorted(docs.rglob("*.md"))]:
        if page == report or not page.is_file():
            continue
        before = page.read_text()
        after = refresh_cases(refresh_answers(before), PREDICTED_GPU)
        if report.is_file():
            after = refresh_accuracy(after, report.read_text())
        if after != before:
            page.write_text(after)
            changed.append(page)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, default=os.environ.get(TRUTH) or None, help=f"default: ${TRUTH}")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="runs, or quoted patterns of runs")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="the folder to write into; default: the repository's docs"
    )
    parser.add_argument("--processes", type=int, default=1, help="for the fits of the accuracy report")
    options = parser.parse_args()
    images = options.docs / "img"
    images.mkdir(parents=True, exist_ok=True)
    draw_plan_example(images / "plan.png")
    print(f"wrote {images / 'plan.png'}")
    draw_goodput_example(images / "goodput.png")
    draw_sizes_example(images / "sizes.png")
    print(f"wrote {images / 'goodput.png'} and {images / 'sizes.png'}")
    for name in DRAWN_SCHEDULES:
        print(f"wrote {draw_schedule(configs.load(name).spec, images / f'schedule_{name}.png')}")
    if options.compare:
        draw_comparison(options.compare, images / "compare.png")
        print(f"wrote {images / 'compare.png'}")
    else:
        print(f"skipped {images / 'compare.png'}: it needs two sets of runs (--compare)")
    if options.truth:
        write_accuracy(Path(options.truth), options.docs, options.processes)
        print(f"wrote {images / 'accuracy.png'} and {options.docs / 'accuracy.md'}")
    else:
        skipped = f"{images / 'accuracy.png'} and {options.docs / 'accuracy.md'}"
        print(f"skipped {skipped}: they need the tables of published measurements (--truth FOLDER or ${TRUTH})")
    for page in refresh_quotes(options.docs):
        print(f"updated {page}")


if __name__ == "__main__":
    try:
        main()
    except configs.Refusal as refusal:
        print(refusal.sentence(), file=sys.stderr)
        sys.exit(2)
