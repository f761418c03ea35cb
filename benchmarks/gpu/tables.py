"""Rows of the GPU benchmark as Markdown: measured against predicted, profiled steps by kind of kernel, the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.breakdown import PLANNED

Row = Mapping[str, Any]  # one line of rows.jsonl

FP8_GOAL, PEER_GOAL, MFU_GOAL = 1.4, 1.1, 0.55  # fp8 over bf16, ours over the best peer, bf16's model FLOPs utilization
KERNEL_NAME_LENGTH = 60  # characters shown
# Overrides that every case has, or that its one-line description states by other words.
_DESCRIBED = frozenset(
    (
        "gpu gpus precision layout.tp layout.seq_length layout.gbs model.num_layers layout.recompute "
        "layout.recompute_modules layout.mbs"
    ).split()
)
_COLUMNS = ("case", "step s", "tokens/s", "TFLOP/s", "MFU", "GiB", "pred. s", "error", "pred. GiB", "error")


def _overrides(row: Row) -> dict[str, str]:
    return dict(word.split("=", 1) for word in row["case"]["overrides"])


def describe(row: Row) -> str:
    """A case in one line: whose, layers, precision, micro-batch, recompute, and what else is set."""
    given = _overrides(row)
    others = [f"{key.split('.')[-1]}={value}" for key, value in given.items() if key not in _DESCRIBED]
    layers = [f"{given['model.num_layers']} layers"] if "model.num_layers" in given else []
    recompute = given.get("layout.recompute", "none")
    recomputed = [] if recompute == "none" else ["recompute", recompute]
    words = [row["who"], *layers, given.get("precision", ""), "mbs", given.get("layout.mbs", ""), *recomputed, *others]
    return " ".join(words).strip()


def predicted_table(rows: Sequence[Row]) -> str:
    """The planner's prediction of every case."""
    lines = ["| case | step s | tokens/s | MFU | peak GiB | of the card GiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        p = row["predicted"]
        speed = f"{p['step_time_s']:.3f} | {p['tokens_per_s']:,.0f} | {p['mfu']:.1%}"
        memory = f"{p['peak_gib']:.1f} | {p['needed_gib']:.1f}{'' if p['fits'] else ': does not fit'}"
        lines.append(f"| {describe(row)} | {speed} | {memory} |")
    return "\n".join(lines)


def tables(rows: Sequence[Row]) -> str:
    """Measured against predicted, the breakdowns of profiled steps, and the ratios that the goals are about."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join([describe(row), *_measured_cells(row), *_predicted_cells(row)]) + " |" for row in rows]
    measured = [row for row in rows if "step_time_s" in row]
    return "\n".join(lines + _breakdowns(measured) + _goals(measured))


def _measured_cells(row: Row) -> list[str]:
    """Step time, tokens/s, TFLOP/s, MFU and GiB; or why there are none."""
    if "step_time_s" not in row:
        return [row.get("failed", ""), "", "", "", ""]
    return [
        f"{row['step_time_s']:.3f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['model_tflops']:.3g}",
        f"{row['mfu']:.1%}" if row["mfu"] else "",
        f"{row['peak_gib']:.1f}" if row["peak_gib"] else "",
    ]


def _predicted_cells(row: Row) -> list[str]:
    """Predicted seconds and GiB, each followed by its error where there is a measurement."""
    p = row.get("predicted", {})
    if "step_time_s" not in p:
        return [""] * 4

    def error(key: str) -> str:
        return f"{p[key] / row[key] - 1:+.1%}" if row.get(key) else ""

    gib = f"{p['peak_gib']:.1f}" + ("" if p["fits"] else ": does not fit")
    return [f"{p['step_time_s']:.3f}", error("step_time_s"), gib, error("peak_gib")]


def _breakdowns(measured: Sequence[Row]) -> list[str]:
    """For each profiled step, its seconds by kind, the planner's beside them, and the slowest kernels."""
    lines = []
    for row in measured:
        if not row["breakdown"]:
            continue
        planned = row.get("predicted", {}).get("breakdown", {})
        lines += ["", f"{describe(row)}, one step, in seconds{' (predicted)' if planned else ''}:"]
        for label, (kinds, terms) in PLANNED.items():
            spent = sum(row["breakdown"].get(kind, 0.0) for kind in kinds)
            predicted = f" ({sum(planned.get(term, 0.0) for term in terms):.3f})" if planned else ""
            lines.append(f"- {label} {spent:.3f}{predicted}")
        slowest = [f"{name[:KERNEL_NAME_LENGTH]} ({kind}) {seconds:.3f}" for name, kind, seconds in row["slowest"][:3]]
        lines.append("- slowest: " + "; ".join(slowest))
    return lines


Shape = tuple[str, str]  # layers, micro-batch
Rates = dict[tuple[str, str, Shape], float]  # by contender, precision and shape: tokens/s


def _rates(measured: Sequence[Row]) -> Rates:
    """The best rate of each contender, precision and shape, without recompute."""
    rates: Rates = {}
    for row in measured:
        given = _overrides(row)
        if given.get("layout.recompute", "none") == "none" and row["mfu"]:
            key = (row["who"], given["precision"], (given["model.num_layers"], given["layout.mbs"]))
            rates[key] = max(rates.get(key, 0.0), row["tokens_per_s"])
    return rates


def _goals(measured: Sequence[Row]) -> list[str]:
    """fp8 over bf16, ours over the best peer of the same kind at the same shape, and the best MFU in bf16."""
    rates = _rates(measured)
    lines = []
    for (who, precision, shape), ours in rates.items():
        if who != "slipway":
            continue
        where = f"{shape[0]} layers, micro-batch {shape[1]}"
        bf16 = rates.get((who, "bf16", shape))
        if precision != "bf16" and bf16:
            lines.append(f"- {precision} over bf16, {where}: {ours / bf16:.2f}x (goal {FP8_GOAL}x)")
        peers = {
            other: rate
            for (other, of_other, at), rate in rates.items()
            if other != "slipway" and at == shape and (of_other == "bf16") == (precision == "bf16")
        }
        if peers:
            best = max(peers, key=lambda name: peers[name])
            lines.append(f"- ours in {precision} over {best}, {where}: {ours / peers[best]:.2f}x (goal {PEER_GOAL}x)")
    in_bf16 = [row for row in measured if row["who"] == "slipway" and _overrides(row).get("precision") == "bf16"]
    best_mfu = max((row["mfu"] or 0.0 for row in in_bf16), default=0.0)
    return ["", *lines, f"- bf16, best MFU: {best_mfu:.1%} (goal {MFU_GOAL:.0%})"] if best_mfu else []
