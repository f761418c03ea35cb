"""The ``slipway`` command. Each command imports what it needs when it runs, so that ``--help`` and ``check`` start at once."""

from __future__ import annotations

import contextlib
import json as json_module
import math
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from slipway.configs.errors import Refusal
from slipway.launch.terminal import captured

if TYPE_CHECKING:
    from slipway.configs import Spec

app = typer.Typer(
    name="slipway",
    help="Megatron-Core training recipes that are checked, planned, rehearsed, launched and measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Text to Megatron .bin/.idx.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Name = Annotated[str, typer.Argument(help="A recipe, as slipway list shows them.", metavar="NAME")]
Overrides = Annotated[
    Optional[list[str]], typer.Argument(help="key=value, as gpu=h200 gpus=64 layout.tp=4.", metavar="[KEY=VALUE]...")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=1))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)


def _table(*columns: str, right: tuple[int, ...] = ()) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", overflow="fold")
    return table


def _resolve(name: str, overrides: list[str] | None) -> tuple[Spec, str]:
    from slipway import configs, planner

    return planner.choose_layout(configs.load(name, overrides or []))


def _layout_words(spec: Spec) -> str:
    from slipway.planner.layout import describe

    return describe(spec)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"slipway {version('nemo-slipway')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """The recipes, and what each trains."""
    from slipway import configs
    from slipway.planner.parameters import model_parameters

    rows: list[dict[str, Any]] = []
    for name in configs.recipe_names():
        model, gpu, gpus = configs.headline(name)
        total, active = model_parameters(model, model.seq_length)
        rows.append(
            {
                "name": name,
                "family": model.family,
                "parameters": total,
                "active": active,
                "seq_length": model.seq_length,
                "gpu": gpu,
                "gpus": gpus,
            }
        )
    if json:
        return _print_json(rows)
    table = _table("recipe", "family", "parameters", "active", "sequence", "default", right=(2, 3, 4))
    for r in rows:
        table.add_row(
            r["name"],
            r["family"],
            f"{r['parameters'] / 1e9:,.3g} B",
            f"{r['active'] / 1e9:,.3g} B",
            f"{r['seq_length']:,}",
            f"{r['gpus']} x {r['gpu']}",
        )
    _console().print(table)
    return None


@app.command()
def show(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """One recipe resolved: each value and who set it, and where it differs from NeMo's recipe of the same name."""
    from slipway.launch.cli.show import resolved_rows, upstream_difference

    rows = resolved_rows(name, overrides or [])
    difference = upstream_difference(name)
    if json:
        return _print_json({"values": rows, "upstream_difference": difference})
    table = _table("key", "value", "set by")
    for row in rows:
        table.add_row(row["key"], str(row["value"]), row["set_by"])
    console = _console()
    console.print(table)
    if difference:
        console.print(f"Against NeMo 2.7.3's {name} (upstream -> ours):")
        for line in difference:
            console.print("  " + line, markup=False)
    return None


@app.command()
def check(
    name: Name,
    overrides: Overrides = None,
    json: Json = False,
    plot: Annotated[Optional[Path], typer.Option(help="Draw the pipeline's timeline: PATH.png and PATH.svg.")] = None,
) -> None:
    """Is it legal, does it fit, how fast will it be: without a GPU, in well under a second."""
    from slipway import planner

    spec, chosen_by = _resolve(name, overrides)
    verdict = planner.check(spec)
    good = planner.nearest_good(spec) if not (verdict.legal and verdict.fits) else None
    if plot and verdict.time:
        from slipway.planner.pictures import draw_timeline

        draw_timeline(verdict.time, spec.batch.num_micro_batches, plot, f"{spec.name}: {_layout_words(spec)}")
    if json:
        out = planner.as_json(verdict) | {"layout_chosen_by": chosen_by}
        if good:
            out["nearest"] = planner.layout_json(good.spec)
        _print_json(out)
    else:
        _print_verdict(verdict, chosen_by, good)
    if not verdict.legal:
        raise Refusal(verdict.violations[0].message, verdict.violations[0].fix)
    if verdict.memory and not verdict.memory.fits:
        m = verdict.memory
        raise Refusal(
            f"{spec.name} needs {m.needed_gib:.1f} GiB on stage {m.peak_stage.stage} and a {spec.gpu.name.upper()} has {m.capacity_gib:.1f}",
            "The nearest layout that fits is shown above." if good else "",
        )


def _print_verdict(verdict: Any, chosen_by: str, good: Any) -> None:
    console = _console()
    spec = verdict.spec
    console.print(
        f"[bold]{spec.name}[/bold] on {spec.gpus} x {spec.gpu.name.upper()}, {spec.precision.name}, sequence {spec.seq_length:,}"
    )
    console.print(f"layout   {_layout_words(spec)}   ({chosen_by})")
    console.print(f"size     {verdict.parameters.total:,} parameters, {verdict.parameters.active:,} active per token")
    for v in verdict.violations:
        console.print(f"[red]illegal[/red]  {v.rule}: {v.message} {v.fix}")
    for v in verdict.advice:
        console.print(f"[yellow]advice[/yellow]   {v.rule}: {v.message} {v.fix}")
    if verdict.memory:
        m = verdict.memory
        word = "[green]fits[/green]    " if m.fits else "[red]too big[/red] "
        console.print(
            f"{word} {m.needed_gib:.1f} of {m.capacity_gib:.1f} GiB (allocator peak {m.peak_gib:.1f} on stage {m.peak_stage.stage}); headroom {m.headroom_gib:+.1f} GiB; host {m.host_gib_per_gpu:.0f} GiB per GPU; checkpoint {m.checkpoint_gib:,.0f} GiB"
        )
        if m.fits and math.isfinite(verdict.expert_load):
            console.print(
                f"experts  fit up to {verdict.expert_load:.2f} times an even load (real routing, not forced balance, peaks at 1.3 to 1.6: docs/planner.md)"
            )
        table = _table(
            "stage",
            "parameters",
            "gradients",
            "optimizer",
            "activations",
            "logits",
            "buffers",
            "total GiB",
            right=tuple(range(8)),
        )
        shown = m.stages if len(m.stages) <= 6 else [*m.stages[:2], *m.stages[-2:]]
        for s in shown:
            parts = (
                s.parameters_gib,
                s.gradients_gib,
                s.optimizer_gib,
                s.activations_gib,
                s.logits_gib,
                s.buffers_gib,
                s.total_gib,
            )
            table.add_row(str(s.stage), *(f"{x:.2f}" for x in parts))
        console.print(table)
    if verdict.time:
        t = verdict.time
        console.print(f"step     {t.step_time_s:.2f} s  (two in three between {t.low_s:.2f} and {t.high_s:.2f})")
        console.print(
            f"speed    {t.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, {t.model_tflops_per_gpu:.0f} model TFLOP/s per GPU (causal attention; {t.model_tflops_full_attention:.0f} by full), MFU {t.mfu:.1%}, bubble {t.bubble_fraction:.1%}"
        )
        spent = sorted(t.breakdown.items(), key=lambda x: -x[1])
        console.print("spent    " + ", ".join(f"{k} {s:.2f} s" for k, s in spent if s > 0.002 * t.step_time_s))
    if good:
        console.print(
            f"nearest  {_layout_words(good.spec)}: legal, needs {good.memory.needed_gib:.1f} GiB, {good.time.step_time_s:.2f} s a step"
        )
        from slipway.planner.layout import chosen_overrides

        words = map(shlex.quote, chosen_overrides(good.layout))
        console.print("         " + " ".join(words), markup=False)


@app.command()
def plan(
    name: Name,
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many candidates.")] = 10,
    precisions: Annotated[
        str, typer.Option(help="Search these too, as bf16,fp8_current; all: every one the GPU has.")
    ] = "",
    json: Json = False,
    plot: Annotated[
        Optional[Path],
        typer.Option(
            help="Draw memory against speed and the best pipeline: PATH.png, PATH.svg, PATH_timeline.png, .svg."
        ),
    ] = None,
) -> None:
    """Search every legal layout, rank those that fit, and say on which term each loses."""
    from slipway import configs, planner

    resolved = configs.load(name, overrides or [])
    if precisions:
        names = configs.precision_names() if precisions == "all" else precisions.split(",")
        chosen = [configs.precision(n) for n in names if n != "fp32"]
        found = planner.plan_precisions(resolved.spec, chosen, top=top)
    else:
        found = planner.plan(resolved.spec, top=top)
    best = found.candidates[0]
    if plot:
        from slipway.planner.pictures import draw_plan, draw_timeline

        draw_plan(found, plot)
        draw_timeline(
            best.time,
            best.spec.batch.num_micro_batches,
            plot.with_name(plot.name + "_timeline"),
            _layout_words(best.spec),
        )
    if json:
        candidates = [
            planner.as_json(planner.check(c.spec)) | {"why": planner.why_slower(c, best)} for c in found.candidates
        ]
        return _print_json(
            {
                "candidates": candidates,
                "considered": found.considered,
                "pruned": found.pruned,
                "did_not_fit": found.did_not_fit,
            }
        )
    console = _console()
    spec = resolved.spec
    console.print(
        f"[bold]{spec.name}[/bold] on {spec.gpus} x {spec.gpu.name.upper()}, {spec.precision.name}, batch {spec.layout.gbs} x {spec.seq_length:,}"
    )
    table = _table("", "layout", "step s", "tokens/s/GPU", "MFU", "GiB", "why", right=(0, 2, 3, 4, 5))
    for i, c in enumerate(found.candidates, 1):
        table.add_row(
            str(i),
            f"{c.spec.precision.name} {_layout_words(c.spec)}" if precisions else _layout_words(c.spec),
            f"{c.time.step_time_s:.2f}",
            f"{c.time.tokens_per_s_per_gpu:,.0f}",
            f"{c.time.mfu:.1%}",
            f"{c.memory.needed_gib:.1f}",
            planner.why_slower(c, best),
        )
    console.print(table)
    console.print(
        f"{found.considered} layouts costed, {found.pruned} more proven slower, {found.did_not_fit} did not fit"
    )
    return None


@app.command()
def advise(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """Which techniques this model needs on this hardware, why, and what each buys in GiB and seconds."""
    from slipway import configs, planner
    from slipway.planner.advise import advise as judge

    resolved = configs.load(name, overrides or [])
    best, advice = judge(resolved.spec)
    if json:
        return _print_json({"layout": planner.layout_json(best.spec), "techniques": [a.__dict__ for a in advice]})
    console = _console()
    console.print(
        f"best     {_layout_words(best.spec)}: {best.time.step_time_s:.2f} s a step, {best.memory.needed_gib:.1f} of {best.memory.capacity_gib:.1f} GiB"
    )
    table = _table("technique", "use", "saves GiB", "saves s", "why", right=(2, 3))
    for a in advice:
        table.add_row(
            a.technique,
            "yes" if a.use else "no",
            "" if a.gib is None else f"{a.gib:+.1f}",
            "" if a.seconds is None else f"{a.seconds:+.2f}",
            a.why,
        )
    console.print(table)
    return None


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A CSV with the columns of published throughput or memory tables.")],
    out: Annotated[Optional[Path], typer.Option(help="Write the rows with their predictions.")] = None,
    json: Json = False,
) -> None:
    """Predict published runs and say how far off."""
    from slipway.planner.published.validate import summarize, write
    from slipway.planner.published.validate import validate as predict_file

    predicted = predict_file(file)
    if out:
        try:
            write(out, predicted)
        except OSError as error:
            raise Refusal(f"{out} cannot be written: {error.strerror}") from None
    summary = summarize(predicted)
    if json:
        return _print_json(summary)
    console = _console()
    console.print(f"{summary['rows']} rows, {summary['modelled']} modelled, {summary['compared']} with a stated speed")
    table = _table("source", "rows", "MAPE", "median", "within 10 %", "skipped", right=(1, 2, 3, 4, 5))
    overall = {k: summary[k] for k in ("mape", "median_ape", "within_10pct")} | {
        "rows": summary["compared"],
        "skipped": summary["rows"] - summary["modelled"],
    }
    for group, s in [*summary["groups"].items(), ("all", overall)]:
        shown = [f"{s[k]:.1%}" if s[k] is not None else "" for k in ("mape", "median_ape", "within_10pct")]
        table.add_row(group, str(s["rows"]), *shown, str(s["skipped"]))
    console.print(table)
    if summary["memory"]["rows"]:
        m = summary["memory"]
        console.print(f"peak memory: {m['rows']} rows, MAPE {m['mape']:.1%}, median {m['median_ape']:.1%}")
    for reason, count in list(summary["skipped"].items())[:8]:
        console.print(f"skipped {count}: {reason}", markup=False)
    return None


@app.command()
def rehearse(
    name: Name,
    overrides: Overrides = None,
    json: Json = False,
    max_ranks: Annotated[
        int, typer.Option(min=1, max=64, help="CPU ranks to use at most, where the layout allows.")
    ] = 8,
) -> None:
    """Run the recipe on CPU at toy size with its true parallel structure; its loss must equal that of one process."""
    from slipway import planner
    from slipway.launch.rehearsal.ranks import RankFailure

    spec, _ = _resolve(name, overrides)
    planner.require_legal(spec)
    _needs_nemo("rehearse")
    from slipway.launch.rehearsal.rehearse import RELATIVE_TOLERANCE
    from slipway.launch.rehearsal.rehearse import rehearse as run

    if not json:
        print(f"importing NeMo, then {_layout_words(spec)} at toy size on CPU ranks ...", file=sys.stderr, flush=True)
    try:
        with _hushed():
            result = run(spec, max_ranks=max_ranks)
    except RankFailure as failure:
        print(failure.log, file=sys.stderr)
        raise
    toy = planner.layout_json(result.toy)
    if json:
        _print_json(
            {
                "name": name,
                "ranks": result.toy.gpus,
                "layout": toy,
                "losses": result.losses,
                "reference_losses": result.reference_losses,
                "max_abs_diff": result.max_abs_diff,
                "max_rel_diff": result.max_rel_diff,
                "agrees": result.agrees,
                "first_draw_rel_diff": result.tie or result.max_rel_diff,
                "seconds": result.seconds,
            }
        )
    else:
        console = _console()
        table = _table("step", "loss, split", "loss, one process", "difference", right=(0, 1, 2, 3))
        for i, (a, b) in enumerate(zip(result.losses, result.reference_losses, strict=True)):
            table.add_row(str(i + 1), f"{a:.7f}", f"{b:.7f}", f"{a - b:+.1e}")
        console.print(
            f"[bold]{name}[/bold] as a toy on {result.toy.gpus} CPU ranks: {_layout_words(result.toy)}; {result.seconds:.0f} s"
        )
        console.print(table)
        word = "[green]the same training[/green]" if result.agrees else "[red]NOT the same training[/red]"
        console.print(
            f"{word}: largest relative difference {result.max_rel_diff:.1e} (allowed {RELATIVE_TOLERANCE:.0e})"
        )
        if result.tie:
            console.print(
                f"(with other weights; with the first, {result.tie:.1e}: a token weighed equally between two experts goes by rounding)"
            )
    if not result.agrees:
        raise typer.Exit(1)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what NeMo prints on import off the terminal, unless it fails."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            with captured(said):
                yield
        except Exception as error:
            if not isinstance(error, Refusal):
                said.seek(0)
                sys.stderr.write(said.read())
            raise


def _needs_nemo(command: str) -> None:
    from importlib.util import find_spec

    if find_spec("nemo") is None or find_spec("megatron") is None:
        raise Refusal(
            f"slipway {command} needs NeMo and Megatron-Core, which are not installed",
            "Install them with: make setup, or pip install 'nemo-slipway[nemo]' with requirements/lock.txt.",
        )


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="The YAML file to write.")],
    overrides: Overrides = None,
) -> None:
    """Write the full recipe as YAML; slipway run FILE.yaml trains exactly that."""
    _needs_nemo("export")
    with _hushed():
        from slipway.launch.export import export_recipe

        export_recipe(name, overrides or [], out)
    print(out)


@app.command()
def run(file: Annotated[Path, typer.Argument(help="A recipe that slipway export wrote.")]) -> None:
    """Train an exported recipe on this machine: its ranks are started here."""
    _needs_nemo("run")
    from slipway.launch.export import train

    train(file)


@app.command()
def launch(
    name: Name,
    overrides: Overrides = None,
    render: Annotated[bool, typer.Option("--render", help="Print the sbatch script; submit nothing.")] = False,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="One run for every combination of key=a,b.")
    ] = False,
    after: Annotated[str, typer.Option(help="Start when these SLURM jobs have succeeded, as 1234 or 1234:1235.")] = "",
    weights: Annotated[
        str, typer.Option(help="Then, when the run has succeeded: a job that writes its weights for Hugging Face here.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Stay, print the job's log, exit as it does.")] = False,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Launch the last commit although files differ from it.")
    ] = False,
    json: Json = False,
) -> None:
    """Check, then submit: slipway launch llama3_8b cluster=site.yaml nodes=4 run.dir=/data/runs."""
    _needs_nemo("launch")
    given = overrides or []
    with _hushed():
        from slipway.launch.executors import submit

    words = submit.spread(given) if multirun else [("", given)]
    with _hushed():
        ready = [submit.prepare(name, one, suffix=word, allow_dirty=allow_dirty or render) for word, one in words]
    if weights and (len(ready) > 1 or ready[0].spec.cluster.executor != "slurm"):
        raise Refusal("--weights is for one run on SLURM", "Afterwards, anywhere: slipway weights RUN --out FOLDER.")
    if render:
        for one in ready:
            print(submit.render(one, after))
        return
    results = []
    for one in ready:  # every one was checked before the first is submitted
        spec = one.spec
        where = f"{spec.num_nodes} x {min(spec.gpus, spec.gpus_per_node)} on {spec.cluster.name}"
        print(f"{spec.name}: {where}, {_layout_words(spec)}; {one.outlook}", file=sys.stderr, flush=True)
        job = submit.submit(one, after)
        then = submit.submit_weights(one, job, weights) if weights else ""
        results.append(
            {"name": spec.name, "job": job, "weights_job": then, "run_dir": str(one.run_dir), "outlook": one.outlook}
        )
        if job and not json:
            print(f"job {job}    log: {submit.log_folder(one)}    then: slipway report {one.run_dir}")
    if json:
        _print_json(results)
    if follow:
        ended = [
            submit.follow(r["job"], submit.log_folder(one)) for r, one in zip(results, ready, strict=True) if r["job"]
        ]
        if any(state != "COMPLETED" for state in ended):
            raise typer.Exit(1)
    return


@app.command()
def weights(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write, which must not be there.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
) -> None:
    """A run's newest checkpoint as a folder that Hugging Face transformers loads."""
    _needs_nemo("weights")
    with _hushed():
        from slipway.launch.weights.export import export

        export(str(run), str(out), dtype)
    print(out)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs.")],
    out: Annotated[Optional[Path], typer.Option(help="Where to write; the run's own folder if not given.")] = None,
    entropy: Annotated[Optional[float], typer.Option(help="Unigram entropy of the corpus, drawn as a line.")] = None,
    json: Json = False,
) -> None:
    """What a run did: loss, speed, memory, predicted against measured; writes PNG, HTML and JSON. A table of all, for a folder of runs."""
    from slipway.launch.runs import report as reports
    from slipway.launch.runs.page import as_json
    from slipway.launch.runs.read import find_runs, read_run

    paths = find_runs(run)
    if not paths:
        raise Refusal(
            f"{run} holds no run", "Give the folder that holds slipway/recipe.json, or a folder of such folders."
        )
    runs = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except Refusal as refusal:
            if len(paths) == 1:
                raise
            print(f"slipway: left out: {refusal.sentence()}", file=sys.stderr)  # the others are still worth a table
    if not runs:
        raise Refusal(f"none of the {len(paths)} runs in {run} can be read")
    summaries = [reports.summarize(one) for one in runs]
    written: list[Path] = []
    pages = []
    for one, summary in zip(runs, summaries, strict=True):
        folder = out / one.path.relative_to(run) if out else one.path
        written += reports.write_report(one, summary, folder, entropy)
        pages.append(folder / "report.html")
    if len(runs) > 1:
        written = reports.write_overview(runs, summaries, pages, out or run)
    if json:
        return _print_json([as_json(s) for s in summaries] if len(summaries) > 1 else as_json(summaries[0]))
    console = _console()
    if len(summaries) == 1:
        table = _table("quantity", "value")
        for label, text in reports.table(summaries[0]):
            table.add_row(label, text)
    else:
        head, *rows = reports.overview(summaries)
        table = _table(*head, right=tuple(i for i in range(1, len(head)) if any(row[i][:1].isdigit() for row in rows)))
        for row in rows:
            table.add_row(*row)
    console.print(table)
    for path in written:
        console.print(f"wrote {path}", markup=False)
    return None


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="The run to compare with; a folder of runs, or a pattern, for several seeds.")
    ],
    b: Annotated[str, typer.Argument(help="The run to judge, or as many.")],
    out: Annotated[Path, typer.Option(help="Where to write compare.png, compare.html and compare.json.")] = Path(
        "compare"
    ),
    json: Json = False,
) -> None:
    """Run B against run A: speed-up, and the loss difference with its noise."""
    from slipway.launch.runs.compare import read_side, write_comparison
    from slipway.launch.runs.page import as_json

    result, written = write_comparison(read_side(a), read_side(b), out)
    if json:
        return _print_json(as_json(result))
    print(result.sentence)
    for path in written:
        print(f"wrote {path}")
    return None


@app.command()
def doctor(
    name: Annotated[
        str, typer.Argument(help="A recipe to hold this machine and its cluster against.", metavar="[NAME]")
    ] = "",
    overrides: Overrides = None,
    only: Annotated[
        str, typer.Option(help="Some sections: packages, gpu, network, slurm, container, space, environment.")
    ] = "",
    sniff: Annotated[
        bool,
        typer.Option(
            "--sniff", help="Matrix products and collectives on every rank of the cluster; names the slow one."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """What is installed and what is here, against what should be, and the line that mends it."""
    from dataclasses import asdict

    from slipway.launch.doctor.examine import examine

    if "=" in name:  # no recipe, only overrides
        name, overrides = "", [name, *(overrides or [])]
    if sniff:
        return _sniff(name or "llama3_tiny", overrides or [], json)
    findings = examine(only, _resolve(name, overrides)[0] if name else None)
    bad = [f for f in findings if not f.good]
    if json:
        _print_json([asdict(f) for f in findings])
    else:
        table = _table("", "subject", "is", "should be", "mend")
        for f in findings:
            table.add_row("ok" if f.good else "!!", f.subject, f.found, f.wanted, "" if f.good else f.fix)
        _console().print(table)
    if bad:
        raise Refusal(
            f"{len(bad)} of {len(findings)} things are not as they should be, first {bad[0].subject}: {bad[0].found}",
            bad[0].fix,
        )
    return None


def _sniff(name: str, overrides: list[str], json: bool) -> None:
    from dataclasses import asdict

    _needs_nemo("doctor --sniff")
    with _hushed():
        from slipway.launch.doctor import sniff
        from slipway.launch.executors import submit
    print("measuring every rank ...", file=sys.stderr, flush=True)
    ranks = submit.sniff(name, overrides)
    slow = sniff.slow(ranks)
    if json:
        _print_json({"ranks": [asdict(r) for r in ranks], "slow": slow})
    else:
        table = _table("rank", "node", "device", "matrix products TFLOP/s", "to the next rank GB/s", right=(0, 3, 4))
        for r in ranks:
            table.add_row(str(r.rank), r.node, r.device, f"{r.gemm_tflops:.3g}", f"{r.neighbour_gb_per_s:.3g}")
        console = _console()
        console.print(table)
        for line in slow or ["no rank is slow"]:
            console.print(line)
    if slow:
        raise typer.Exit(1)


def _progress(description: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn(description),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@data_app.command("tokenizer")
def data_tokenizer(
    files: Annotated[list[str], typer.Argument(help="Text files, .jsonl files, or folders.")],
    out: Annotated[Path, typer.Option(help="Folder to write tokenizer.json into.")],
    vocab_size: Annotated[int, typer.Option(help="Number of ids.")] = 32000,
    pattern: Annotated[str, typer.Option(help="Which names to take from folders.")] = "*",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that are not UTF-8.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from slipway.launch.data.prepare import train_tokenizer

    size = train_tokenizer(files, out, vocab_size, pattern=pattern, skip_bad=skip_bad)
    print(f"{out}: {size} ids")


@data_app.command("prepare")
def data_prepare(
    files: Annotated[list[str], typer.Argument(help="Text files, .jsonl files with a text field, or folders.")],
    tokenizer: Annotated[str, typer.Option(help="Folder that holds tokenizer.json.")],
    out: Annotated[str, typer.Option(help="PREFIX of the .bin and .idx to write.")],
    workers: Annotated[Optional[int], typer.Option(min=1, help="Processes; all cores if not given.")] = None,
    pattern: Annotated[str, typer.Option(help="Which names to take from folders.")] = "*",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that are not UTF-8, and count them.")
    ] = False,
    json: Json = False,
) -> None:
    """Tokenize text into PREFIX.bin and PREFIX.idx: parallel, resumable, never half a file."""
    from dataclasses import asdict

    from slipway.launch.data.prepare import prepare

    with _progress("tokenizing") as bar:
        task = bar.add_task("", total=None, visible=False)
        result = prepare(
            files,
            tokenizer,
            out,
            pattern=pattern,
            workers=workers,
            skip_bad=skip_bad,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    if json:
        return _print_json(asdict(result))
    print(
        f"{out}.bin, {out}.idx: {result.documents:,} documents, {result.tokens:,} tokens"
        + (f", {result.skipped} files left out" if result.skipped else "")
    )
    print(f"unigram entropy {result.unigram_entropy:.3f} nats per token")
    return None


def main() -> None:
    """Run the command: exit 0 good, 1 a fault of ours, 2 a refusal in one sentence on stderr."""
    try:
        sys.exit(app(standalone_mode=False) or 0)  # typer.Exit comes back as a value
    except Refusal as refusal:
        print(f"slipway: {refusal.sentence()}", file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        print("slipway: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors; typer carries a click of its own in some versions
            print(f"slipway: {' '.join(error.format_message().split())} See slipway --help.", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        print(
            "slipway: this is a fault of ours, not yours; the traceback above is what a report needs.", file=sys.stderr
        )
        sys.exit(1)
