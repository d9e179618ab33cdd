"""One self-contained page: figures as data URIs, the table, every run and its configuration; nothing is fetched."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from .groups import Group
from .style import DPI

_STYLE = """
:root { color-scheme: light dark;
  --text: #1d1f21; --quiet: #5b6168; --line: #d9dce0; --ground: #ffffff; --raised: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6e9; --quiet: #9aa1a9; --line: #3a3f45; --ground: #16181b; --raised: #1f2226; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption, .quiet { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.35rem 0.55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; cursor: pointer; } th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
th:first-child, td:first-child { text-align: left; min-width: 11rem; }
td small { display: block; color: var(--quiet); white-space: nowrap; }
td small.long { white-space: normal; width: 15rem; margin-left: auto; overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { box-sizing: content-box; max-width: calc(100% - 2rem); margin: 0; padding: 0.8rem;
  background: var(--raised); border: 1px solid var(--line); border-radius: 6px; }
figure img { display: block; width: 100%; background: #ffffff; border-radius: 3px; }
figcaption { font-size: 0.85rem; margin-top: 0.5rem; }
details { border-bottom: 1px solid var(--line); padding: 0.3rem 0; }
pre { background: var(--raised); padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
"""
_LONG = 24  # characters of a cell's small line that are broken over lines
# A click on a heading sorts by that column, numbers by their size and unit, what is none last; another turns it round.
_SORTING = """
const units = { kB: 1e3, MB: 1e6, GB: 1e9 };
const heads = [...document.querySelectorAll("thead th")];
heads.forEach((head, column) => head.addEventListener("click", () => {
  const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(one => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
  const number = row => {
    const found = /^(-?[\\d.,]+)\\s*(kB|MB|GB)?/.exec(row.cells[column].innerText);
    return found ? parseFloat(found[1].replaceAll(",", "")) * (units[found[2]] ?? 1) : NaN;
  };
  const text = row => row.cells[column].innerText;
  const order = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
    return turn * (isNaN(a) ? text(one).localeCompare(text(other)) : a - b);
  };
  const body = head.closest("table").tBodies[0];
  body.append(...[...body.rows].sort(order));
}));
"""


@dataclass(frozen=True)
class Picture:
    """A figure's file, what it is drawn from and how to read it."""

    path: Path
    caption: str


def write(
    path: Path,
    title: str,
    table: tuple[list[str], list[list[str]]],
    note: str,
    pictures: Sequence[Picture],
    groups: Sequence[Group],
    remarks: Sequence[str],
) -> None:
    """Write the page: `table` is header and lines as `experiments.comparison.table.cells` gives them."""
    heading = f"Comparison of runs, {date.today().isoformat()}"
    body = [
        f"<h1>{heading}</h1>",
        f"<p>{html.escape(title)}</p>",
        f'<div class="wide">{table_of(*table)}</div>',
        f"<p>{html.escape(note)}</p>",
        *(f"<p>{html.escape(remark)}</p>" for remark in remarks),
        '<h2>Figures</h2><div class="figures">',
        *map(figure, pictures),
        "</div>",
        "<h2>Runs and their configurations</h2>",
        *(_run(one, index) for one in groups for index in range(len(one.runs))),
    ]
    path.write_text(document(heading, body, _SORTING), encoding="utf-8")


def document(title: str, body: Sequence[str], script: str) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{script}</script>\n</body></html>\n"
    )


def table_of(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; what follows a line break in a cell is small."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    rows = "\n".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


def _cell(text: str) -> str:
    first, _, second = text.partition("\n")
    kind = ' class="long"' if len(second) > _LONG else ""
    return f"<td>{html.escape(first)}{f'<small{kind}>{html.escape(second)}</small>' if second else ''}</td>"


def figure(picture: Picture) -> str:
    """A picture within the page."""
    png = picture.path.read_bytes()
    # A PNG's width is at a fixed place. Drawn at 200 dots an inch for print, it is shown at 120 on a screen.
    width = int.from_bytes(png[16:20], "big") * 120 // DPI
    encoded, caption = base64.b64encode(png).decode("ascii"), html.escape(picture.caption)
    return (
        f'<figure style="width: {width}px"><img src="data:image/png;base64,{encoded}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _run(one: Group, index: int) -> str:
    run = one.runs[index]
    name = html.escape(f"{one.label}, seed {run.get('seed')}")
    config = html.escape(json.dumps(run.config, indent=2, ensure_ascii=False, default=str))
    source = f'<span class="quiet">{html.escape(run.source)}</span>'
    return f"<details><summary>{name} {source}</summary><pre>{config}</pre></details>"
