"""The race in one look: a row for each scheme, ours coloured and the peers grey, fastest first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from ..bench.race.plan import OURS
from ..comparison.schemes import known
from ..comparison.style import PLAIN
from .page import INK, MUTED, svg

REGIMES = {  # heading in docs/results.md -> title of the panel
    "Links of 100 Mbit/s, no stragglers": "100 Mbit/s, nobody is late",
    "Links of 100 Mbit/s, a tenth of all steps a second late": "100 Mbit/s, a tenth of steps 1 s late",
    "Unshaped loopback, no stragglers": "links cost nothing",
}


class Raced(NamedTuple):
    """One row of a race's table.

    Attributes:
        scheme: its name.
        time_s: seconds to the target: (least, median, greatest).
        megabytes: what a rank sent until then; None where links are not shaped.
    """

    scheme: str
    time_s: tuple[float, float, float]
    megabytes: float | None


def read(page: str) -> dict[str, list[Raced]]:
    """The race's tables on the page of results: panel's title -> rows, fastest first.

    Raises:
        ValueError: a heading or its table is not there, or a time is none.
    """
    return {title: [_raced(row) for row in table(page, heading)] for heading, title in REGIMES.items()}


def table(page: str, heading: str) -> list[dict[str, str]]:
    """The first table below a heading: a dictionary for each row, by the names of the columns."""
    found = re.search(rf"^#+ {re.escape(heading)}$\n(?:(?!^#).*\n)*?((?:^\|.*\n)+)", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"no table below {heading!r}")
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines())
    return [dict(zip(names, row, strict=True)) for row in rows]


def _raced(row: dict[str, str]) -> Raced:
    found = re.fullmatch(r"([\d.]+)(?: \(([\d.]+)\.\.([\d.]+)\))? s", row["time to target"])
    if found is None:
        raise ValueError(f"{row['time to target']!r} is no time to the target")
    median = float(found[1])
    kilobytes = row["KB/rank"]
    return Raced(
        row["scheme"],
        (float(found[2] or median), median, float(found[3] or median)),
        int(row["updates"]) * int(kilobytes) / 1000 if kilobytes else None,
    )


def draw_times(raced: dict[str, list[Raced]], path: Path) -> None:
    """Seconds to the target: a panel for each kind of links."""
    with svg(path, 9.6, 3.3) as figure:
        panels = figure.subplots(1, len(raced))
        for axes, (title, rows) in zip(panels, raced.items(), strict=True):
            _rows(axes, title, rows, lambda one: one.time_s)
        figure.supxlabel(
            "seconds to the target, logarithmic: median of the seeds, line from the fastest to the slowest",
            fontsize=9.5,
        )


def draw_bytes(raced: dict[str, list[Raced]], path: Path) -> None:
    """Megabytes that a rank sent until the target, where links are shaped."""
    shaped = {title: rows for title, rows in raced.items() if rows[0].megabytes is not None}
    with svg(path, 7.4, 3.3) as figure:
        panels = figure.subplots(1, len(shaped))
        for axes, (title, rows) in zip(panels, shaped.items(), strict=True):
            _rows(axes, title, sorted(rows, key=_sent), lambda one: (_sent(one),) * 3)
        figure.supxlabel("megabytes sent by a rank until the target, logarithmic", fontsize=9.5)


def _sent(one: Raced) -> float:
    assert one.megabytes is not None
    return one.megabytes


def _rows(axes: Axes, title: str, rows: list[Raced], of: Callable[[Raced], tuple[float, float, float]]) -> None:
    axes.set_title(title, loc="left", pad=8)
    axes.set_xscale("log")
    for place, one in enumerate(rows):
        ours = one.scheme in OURS
        colour = known()[one.scheme].colour if ours else "#9a9a9a"
        least, median, greatest = of(one)
        axes.plot([least, greatest], [place, place], color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
        axes.plot([median], [place], marker="o", color=colour, markersize=6)
        axes.annotate(
            f"{median:.3g}", (greatest, place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
            color=colour if ours else MUTED,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [one.scheme for one in rows])
    for label, one in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(known()[one.scheme].colour if one.scheme in OURS else INK)
        label.set_fontweight("bold" if one.scheme in OURS else "normal")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    low, high = min(of(one)[0] for one in rows), max(of(one)[2] for one in rows)
    axes.set_xlim(low / 1.25, high * (high / low) ** 0.24)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
