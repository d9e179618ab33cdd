"""How figures look: sizes of a printed column, a colour for each scheme, axes that suit their range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .groups import SCHEMES, Group

COLUMN = 3.5  # inches: one column of a two-column page
DPI = 200
PLAIN = "{x:g}"  # of ticks on logarithmic axes, which matplotlib writes as powers

# Okabe and Ito's palette, told apart under all common colour blindness, for the schemes that are most often drawn
# together; the others are shades of theirs, with a marker of their own.
COLOURS = dict(
    zip(
        SCHEMES,
        (
            "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#D55E00", "#8C3A00", "#56B4E9", "#7F7F7F", "#000000",
            "#5C4A72", "#8B6F00",
        ),
        strict=True,
    )
)  # fmt: skip
MARKERS = dict(zip(SCHEMES, "osDv^*<>XPp", strict=True))
OTHER = "#4D4D4D"
_DASHES: Sequence[str | tuple[int, tuple[float, ...]]] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (4, 1, 1, 1)),
    (0, (7, 2)),
)
_FILLS: Sequence[Literal["full", "none", "left", "right", "top"]] = ("full", "none", "left", "right", "top")

SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """How one group is drawn in every figure."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]
    fill: Literal["full", "none", "left", "right", "top"]


def looks(groups: Sequence[Group]) -> list[Look]:
    """A look for each group: colour and marker by scheme; dashes and the marker's filling within one scheme."""
    seen: dict[str, int] = {}
    result = []
    for one in groups:
        turn = seen[one.scheme] = seen.get(one.scheme, -1) + 1
        colour, marker = COLOURS.get(one.scheme, OTHER), MARKERS.get(one.scheme, "o")
        result.append(Look(colour, marker, _DASHES[turn % len(_DASHES)], _FILLS[turn % len(_FILLS)]))
    return result


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches that is written to `path` at the end."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=DPI)


def log_where_asked(axes: Axes, lowest: float, highest: float) -> None:
    """A logarithmic x axis where values span more than a decade."""
    if lowest > 0 and highest > 10 * lowest:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.xaxis.set_minor_locator(NullLocator())


def legend(figure: Figure, handles: Sequence[Artist], title: str) -> None:
    """A legend above the axes, in as many columns as its names leave room for."""
    columns = _legend_columns([str(handle.get_label()) for handle in handles])
    figure.legend(
        handles=handles, title=title, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=2.4
    )


def legend_height(labels: Sequence[str]) -> float:
    """Inches that the legend of `labels` takes."""
    return 0.2 + 0.14 * -(-len(labels) // _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max(map(len, labels))
    return 3 if longest <= 12 else 2 if longest <= 24 else 1
