"""What every page and picture of ours looks like: one figure style, one self-contained HTML page."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 60rem; padding: 1rem; }}
h1 {{ font-size: 1.4rem; margin: .5rem 0; }} h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .5rem; }}
p.lead {{ margin: .25rem 0 1rem; color: #444; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
td, th {{ text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
svg {{ width: 100%; height: auto; display: block; }}
</style></head><body><h1>{title}</h1><p class="lead">{lead}</p>{body}</body></html>
"""


def smooth(values: np.ndarray, reach: int = 15) -> np.ndarray:
    """Mean of each value with up to ``reach`` on either side.

    At the start, where a loss falls fast, with no more after it than before; at the end, where it hardly does, with all before it.
    Values that are not finite are left out, and leave a gap where there is nothing else.
    """
    at = np.arange(len(values))
    before = np.minimum(reach, at)
    after = np.minimum(before, at[::-1])
    finite = np.isfinite(values)

    def windows(v: np.ndarray) -> np.ndarray:
        sums = np.concatenate(([0.0], np.cumsum(v)))
        return sums[at + after + 1] - sums[at - before]

    with np.errstate(invalid="ignore"):
        return windows(np.where(finite, values, 0.0)) / windows(finite)


def figure(height: float = 4.0, **subplots: Any) -> Any:
    """Matplotlib's figure and axes, as wide as a page; ``subplots`` as plt.subplots takes them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    return plt.subplots(figsize=(7.0, height), layout="constrained", **subplots)


def curve(
    axes: Any, x: np.ndarray, values: np.ndarray, label: str, color: str, *, width: float = 1.8, raw: bool = True
) -> None:
    """A noisy quantity: its smoothed line, over its own values where they are not too many to be seen."""
    if raw:
        axes.plot(x, values, color=color, linewidth=0.7, alpha=0.35)
    axes.plot(x, smooth(values), color=color, linewidth=width, label=label)


def svg(drawn: Any) -> str:
    """A figure as the text of an <svg> element; the figure is closed."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(drawn)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), links: Sequence[str] = ()) -> str:
    """Rows of plain text as an HTML table that scrolls by itself where it is too wide; ``links`` are of the first column's cells."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)] if head else []
    for i, row in enumerate(rows):
        cells = [html.escape(cell) for cell in row]
        if links:
            cells[0] = f'<a href="{html.escape(links[i])}">{cells[0]}</a>'
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain data that every reader of JSON takes: what is not finite is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(value).items()}


def write(out: Path, name: str, picture: tuple[str, Any], title: str, lead: str, body: str, data: Any) -> list[Path]:
    """Write a picture, ``name``.html (with the picture where ``body`` says {picture}) and ``name``.json into ``out``.

    Raises:
        Refusal: the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{out} cannot be made: {error.strerror}", "Give an --out that you may write to.") from None
    png, page, plain = out / picture[0], out / f"{name}.html", out / f"{name}.json"
    picture[1].savefig(png, dpi=150)
    page.write_text(
        _PAGE.format(title=html.escape(title), lead=html.escape(lead), body=body.replace("{picture}", svg(picture[1])))
    )
    plain.write_text(json.dumps(data, indent=1))
    return [png, page, plain]
