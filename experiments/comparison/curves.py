"""The target metric against what was spent: wall time, bytes, updates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .groups import Group
from .run import Run
from .series import Column
from .style import COLUMN, Look, drawing, legend, legend_height, log_where_asked, looks
from .table import bytes_unit

TOGETHER = 5  # more lines than that cross in one picture: each has a panel of its own then
_ACROSS = 4  # panels
_LABELS = {
    "wall": "wall time since the start of fit (s)",
    "bytes": "bytes over all links ({unit})",
    "updates": "updates",
}
_NAMES = {"val_acc": "validation accuracy", "val_bpc": "validation bits per character", "val_loss": "validation loss"}


def band(runs: Sequence[Run], axis: str) -> tuple[Column, Column, Column, Column] | None:
    """(spent, median, lower quartile, upper quartile) of the metric at validations that half of the runs made.

    Validations are matched by the updates made before them; what was spent by then is the median over runs. None where
    no run's log tells what was spent.
    """
    at: dict[float, list[tuple[float, float]]] = {}
    for run in runs:
        curve = run.curve
        for updates, spent, value in zip(curve.updates, curve.spent(axis), curve.value, strict=True):
            if np.isfinite(spent) and np.isfinite(value):
                at.setdefault(float(updates), []).append((float(spent), float(value)))
    shared = [np.array(points) for _, points in sorted(at.items()) if 2 * len(points) >= len(runs)]
    if not shared:
        return None
    spent_s = np.array([np.median(points[:, 0]) for points in shared])
    low, median, high = np.array([np.quantile(points[:, 1], (0.25, 0.5, 0.75)) for points in shared]).T
    order = np.argsort(spent_s, kind="stable")
    return spent_s[order], median[order], low[order], high[order]


def draw(path: Path, groups: Sequence[Group], axis: str) -> list[str]:
    """Draw groups of one metric; returns the labels of those that cannot be drawn against `axis`."""
    bands = [band(one.runs, axis) for one in groups]
    drawn = [(one, look, found) for one, look, found in zip(groups, looks(groups), bands, strict=True) if found]
    left_out = [one.label for one, found in zip(groups, bands, strict=True) if not found]
    if not drawn:
        return left_out
    first = groups[0].runs[0]
    targets = {float(run.summary["target"]["value"]) for one in groups for run in one.runs}
    medians = np.concatenate([found[1] for _, _, found in drawn])
    low, high = focus(medians, targets, first.minimised)
    visible = np.concatenate([found[0][(found[2] <= high) & (found[3] >= low)] for _, _, found in drawn])
    scale, unit = bytes_unit(float(visible.max())) if axis == "bytes" else (1.0, "")
    apart = len(drawn) > TOGETHER
    rows = -(-len(drawn) // _ACROSS)
    width, height = (2 * COLUMN, 0.5 + 1.3 * rows) if apart else (COLUMN, 2.2)
    with drawing(path, width, height + (0 if apart else legend_height([one.label for one, _, _ in drawn]))) as figure:
        panels = figure.subplots(rows, _ACROSS, sharex=True, sharey=True).flat if apart else [figure.subplots()]
        lines = []
        for place, axes in enumerate(panels):
            for one, look, found in drawn[place : place + 1] if apart else drawn:
                lines.append(_line(axes, one, look, found, scale, in_sight=_touches(found[1], low, high)))
            for _, _, (spent, median, _, _) in drawn if apart else []:  # whom it is to be told from
                axes.plot(spent / scale, median, color="0.85", linewidth=0.6, zorder=0)
            for value in sorted(targets):
                axes.axhline(value, color="0.55", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
                if place == 0:
                    _say_target(axes, value)
            axes.set_ylim(low, high)
            log_where_asked(axes, float(visible.min()) / scale, float(visible.max()) / scale)
            _reach(axes, visible / scale)
            axes.yaxis.set_major_locator(MaxNLocator(4 if apart else 6, steps=[1, 2, 2.5, 5, 10]))
            if apart and place < len(drawn):
                one, look, _ = drawn[place]
                axes.set_title(textwrap.fill(one.label, 30), loc="left", color=look.colour, fontsize=7)
            axes.set_visible(not apart or place < len(drawn))
            axes.tick_params(labelbottom=not apart or place + _ACROSS >= len(drawn))
        logarithmic = ", logarithmic" if axes.get_xscale() == "log" else ""
        along, up = _LABELS[axis].format(unit=unit) + logarithmic, _NAMES.get(first.metric, first.metric)
        shown = statistic([one for one, _, _ in drawn])
        if apart:
            figure.supxlabel(f"{along}; {shown}, the others grey", fontsize=8)
            figure.supylabel(up, fontsize=8)
        else:
            axes.set_xlabel(along)
            axes.set_ylabel(up)
            legend(figure, lines, shown)
    return left_out


def _touches(values: Column, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).any())


def _line(
    axes: Axes, one: Group, look: Look, found: tuple[Column, Column, Column, Column], scale: float, *, in_sight: bool
) -> Line2D:
    spent, median, lower, upper = found
    label = one.label if in_sight else f"{one.label} (out of sight)"
    axes.fill_between(spent / scale, lower, upper, color=look.colour, alpha=0.15, linewidth=0)
    (line,) = axes.plot(
        spent / scale, median, label=label, color=look.colour, linestyle=look.dashes,
        marker=look.marker, fillstyle=look.fill, markevery=max(1, len(spent) // 10),
    )  # fmt: skip
    return line


def statistic(groups: Sequence[Group]) -> str:
    """What lines and bands show; single runs have neither median nor quartiles."""
    several = [len(one.runs) > 1 for one in groups]
    if not any(several):
        return "single runs"
    return (
        "median and quartiles over runs" if all(several) else "median and quartiles over runs, where there are several"
    )


def focus(values: Column, targets: set[float], minimised: bool) -> tuple[float, float]:
    """Limits that show the better four fifths of all values, and the targets: the first would press the rest flat.

    >>> low, high = focus(np.linspace(0.0, 1.0, 101), {0.9}, minimised=False)
    >>> 0.1 < low < 0.2 and high > 1.0
    True
    """
    worst = float(np.quantile(values, 0.8 if minimised else 0.2))
    shown = [float(values.min() if minimised else values.max()), worst, *targets]
    far, worst = (min(shown), max(shown)) if minimised else (max(shown), min(shown))
    margin = 0.08 * (worst - far) or 0.01
    low, high = sorted((far - 1.5 * margin, worst + margin))
    return low, high


def _say_target(axes: Axes, value: float) -> None:
    # On the left, where curves are still far from it.
    axes.annotate(
        f"target {value:g}", (0.0, value), xycoords=("axes fraction", "data"), xytext=(2, 2),
        textcoords="offset points", ha="left", va="bottom", fontsize=6.5, color="0.4", zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip


def _reach(axes: Axes, visible: Column) -> None:
    lowest, highest = float(visible.min()), float(visible.max())
    if axes.get_xscale() == "log":
        axes.set_xlim(lowest / 1.15, highest * 1.15)
    elif highest > lowest:
        axes.set_xlim(max(0.0, lowest - 0.05 * (highest - lowest)), highest + 0.03 * (highest - lowest))
