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

from .groups import Group
from .schemes import Look as SchemeLook
from .schemes import look_of

COLUMN = 3.5  # inches: one column of a two-column page
DPI = 200
SEVERAL = SchemeLook()  # of a group that holds more than one scheme
PLAIN = "{x:g}"  # of ticks on logarithmic axes, which matplotlib writes as powers

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
        scheme = look_of(one.scheme, one.runs[0].config.get("scheme") or {}) if one.scheme else SEVERAL
        result.append(Look(scheme.colour, scheme.marker, _DASHES[turn % len(_DASHES)], _FILLS[turn % len(_FILLS)]))
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
