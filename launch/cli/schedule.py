"""A run's schedule on a terminal: a line of bars for each quantity over the tokens, and a table of the turns."""

from __future__ import annotations

from slipway.configs import Spec
from slipway.launch.cli.printing import Style, Table, Terminal
from slipway.launch.cli.quantities import duration, in_tokens
from slipway.planner.course import Moment, course, samples, turns
from slipway.planner.rules import is_legal

BARS = "▁▂▃▄▅▆▇█"
MOST_COLUMNS, LEAST_COLUMNS = 64, 16  # of a line of bars
COLUMNS_OF_RANGE = 24  # behind a line of bars: its smallest and its largest value
MOST_TURNS = 14  # of a table: a longer one leaves out the batches in the middle of a ramp


def show_schedule(terminal: Terminal, spec: Spec) -> None:
    """Print what the run of ``spec`` does over its tokens."""
    marks, line = turns(spec), samples(spec)
    tokens = in_tokens(marks[-1].tokens + marks[-1].gbs * spec.seq_length)
    head = f"{spec.name}: {tokens} tokens in {spec.run.max_steps:,} steps, sequences of {spec.seq_length:,} tokens"
    terminal.line(head, Style.BOLD)
    if is_legal(spec):
        where = f"{spec.gpus:,} x {spec.gpu.name.upper()}"
        terminal.line(f"{duration(course(spec).seconds)} of steps on {where} (predicted)")
    terminal.line()
    everywhere = _quantities(line)
    width = max(map(len, everywhere))
    columns = max(LEAST_COLUMNS, min(MOST_COLUMNS, terminal.width - width - COLUMNS_OF_RANGE))
    drawn = _quantities(_columns(line, columns))
    for label, values in everywhere.items():
        terminal.line(f"{label:{width}}  {_bars(drawn[label])}  {_number(min(values))} to {_number(max(values))}")
    _show_turns(terminal, spec, marks)
    _show_context(terminal, spec)
    terminal.field("source", spec.optim.source)


def _columns(line: list[Moment], count: int) -> list[Moment]:
    """The moment at the middle of each column; the columns are even in tokens."""
    middles = [(column + 0.5) * line[-1].tokens / count for column in range(count)]
    return [min(line, key=lambda moment: abs(moment.tokens - middle)) for middle in middles]


def _quantities(line: list[Moment]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {
        "learning rate": [moment.lr for moment in line],
        "batch (sequences)": [moment.gbs for moment in line],
    }
    return out | {name: [moment.constants[name] for moment in line] for name in line[0].constants}


def _bars(values: list[float]) -> str:
    most = max(values) or 1.0
    return "".join(BARS[round((len(BARS) - 1) * value / most)] for value in values)


def _show_turns(terminal: Terminal, spec: Spec, marks: list[Moment]) -> None:
    names = list(marks[0].constants)
    table = Table(("step", "tokens", "learning rate", "batch", "tokens per step", *names), right=frozenset(range(5)))
    left_out = len(marks) - MOST_TURNS
    for number, moment in enumerate(marks):
        if left_out > 0 and MOST_TURNS // 2 <= number < MOST_TURNS // 2 + left_out:
            if number == MOST_TURNS // 2:
                table.add("...", f"{left_out} more", *([""] * (3 + len(names))))
            continue
        batch = in_tokens(moment.gbs * spec.seq_length)
        constants = [f"{moment.constants[name]:g}" for name in names]
        table.add(
            f"{moment.step:,}", in_tokens(moment.tokens), f"{moment.lr:.4g}", f"{moment.gbs:,}", batch, *constants
        )
    terminal.table(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.4g}"


def _show_context(terminal: Terminal, spec: Spec) -> None:
    """Print what the run does not do: the published stages of longer sequences; and what it does from step 0 on."""
    factor = spec.model.rope_scaling_factor
    if factor > 1:
        terminal.field(
            "RoPE",
            f"is scaled by {factor:g} from step 0 on, as NeMo does; the model was published with sequences of "
            f"{spec.seq_length:,} first and a longer context later. model.rope_scaling_factor=1 trains without it.",
        )
    for number, stage in enumerate(spec.optim.context_extension, 1):
        terminal.field(f"after {number}", f"{stage} (published; not part of this run)")
