"""Self-contained HTML pages of runs, with a picture and JSON beside each. All text on them is escaped."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slipway.configs import Refusal
from slipway.launch.runs.pictures import svg

DOTS_PER_INCH = 150

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; }}
h1, p.lead, td {{ overflow-wrap: break-word; }}
h1 {{ font-size: 1.4rem; margin: .5rem 0; }} h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .5rem; }}
p.lead {{ margin: .25rem 0 1rem; color: #444; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.scroll {{ overflow-x: auto; }}
td, th {{ text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
td.number, th.number {{ text-align: right; }}
svg {{ width: 100%; height: auto; display: block; }}
#charts svg {{ touch-action: pan-y; cursor: crosshair; font-size: 12px; }} #charts svg text {{ fill: #444; }}
p.legend {{ margin: 0; font-size: .85rem; }} p.legend span {{ margin-right: 1rem; }}
p.legend i {{ display: inline-block; width: 1.2rem; height: .25rem; margin: 0 .4rem .2rem 0; }}
p.said {{ margin: 0; min-height: 1.5em; font-size: .85rem; color: #444; }}
@media (max-width: 30rem) {{ td, th {{ padding-right: .5rem; font-size: .85rem; }} }}
</style></head><body><h1>{title}</h1><p class="lead">{lead}</p>{body}</body></html>
"""


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), links: Sequence[str] = ()) -> str:
    """Rows of plain text as an HTML table, which scrolls where it is too wide. Numbers are aligned to the right.

    Args:
        links: for each row, the relative path that its first cell links to.
    """
    numeric = {i for i in range(1, len(head)) if all(re.match(r"[-+]?\d|$", row[i]) for row in rows)}

    def cell(kind: str, column: int, content: str) -> str:
        return f"<{kind}{' class=number' if column in numeric else ''}>{content}</{kind}>"

    lines = ["".join(cell("th", i, html.escape(title)) for i, title in enumerate(head))] if head else []
    for i, row in enumerate(rows):
        cells = [html.escape(text) for text in row]
        if links:
            cells[0] = f'<a href="{html.escape(quote(links[i]))}">{cells[0]}</a>'
        lines.append("".join(cell("td", column, content) for column, content in enumerate(cells)))
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def section(title: str, content: str) -> str:
    """A part of a page: a heading, and HTML below it."""
    return f"<h2>{html.escape(title)}</h2>{content}"


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain data. A number that is not finite, which JSON does not have, is null."""
    plain = asdict(value).items()
    return {key: None if isinstance(field, float) and not math.isfinite(field) else field for key, field in plain}


@dataclass(frozen=True)
class Page:
    """What is written for one report: NAME.html, NAME.json and a picture, which the page holds too.

    Args:
        charts: HTML that stands in the page in place of the picture, if any.
        before: HTML above the picture.
        after: HTML below the picture.
        data: what the JSON file holds.
    """

    name: str
    title: str
    lead: str
    picture_name: str
    picture: Any
    data: Any
    charts: str = ""
    before: str = ""
    after: str = ""


def write(page: Page, out: Path) -> list[Path]:
    """Write a page's three files into ``out``, which is made if it does not exist. Returns their paths.

    Raises:
        Refusal: the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{out} cannot be made: {error.strerror}", "Give an --out that you may write to.") from None
    picture, document, data = out / page.picture_name, out / f"{page.name}.html", out / f"{page.name}.json"
    page.picture.savefig(picture, dpi=DOTS_PER_INCH)
    drawn = page.charts or svg(page.picture)
    body = page.before + drawn + page.after
    document.write_text(_PAGE.format(title=html.escape(page.title), lead=html.escape(page.lead), body=body))
    data.write_text(json.dumps(page.data, indent=1))
    return [picture, document, data]
