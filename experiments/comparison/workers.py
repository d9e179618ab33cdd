"""Each worker's share: in how many updates its codeword counted, and how stale it then was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .groups import Group
from .run import Run
from .series import Column
from .style import COLUMN, Look, drawing, legend, legend_height, looks


def inclusion(run: Run) -> list[float]:
    """For each worker the share of all updates in which it counted; empty where no exchange was monitored."""
    return [float(column.mean()) for column in _by_worker(run, "arrived")]


def staleness(run: Run) -> list[float]:
    """For each worker the mean staleness in updates where it counted, NaN where it never did."""
    columns = _by_worker(run, "staleness")
    return [float("nan") if np.isnan(column).all() else float(np.nanmean(column)) for column in columns]


def _by_worker(run: Run, name: str) -> list[Column]:
    series = run.arrivals
    n = sum(key.startswith(f"exchange/{name}/") for key in series)
    return [series[f"exchange/{name}/{worker}"] for worker in range(n)]


def monitored(groups: Sequence[Group]) -> list[Group]:
    """Groups with an exchange to draw."""
    return [one for one in groups if any(inclusion(run) for run in one.runs)]


def draw(path: Path, groups: Sequence[Group]) -> None:
    """Inclusion rate above mean staleness, by worker: medians over runs, bars from lowest to highest."""
    with drawing(path, COLUMN, 3.1 + legend_height([one.label for one in groups])) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for place, (one, look) in enumerate(zip(groups, looks(groups), strict=True)):
            offset = 0.7 * ((place + 0.5) / len(groups) - 0.5)
            _bars(above, one, look, offset, inclusion)
            _bars(below, one, look, offset, staleness)
        above.set_ylabel("inclusion rate")
        above.set_ylim(-0.04, 1.04)
        below.set_ylabel("mean staleness (updates)")
        # Without staleness there is still an axis to say so.
        below.set_ylim(-0.04, max(1.0, below.get_ylim()[1]))
        below.set_xlabel("worker")
        for axes in (above, below):
            axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
            axes.grid(axis="y", linewidth=0.4, color="0.9")
            axes.set_axisbelow(True)
        legend(figure, above.get_legend_handles_labels()[0], "median and range over runs")


def _bars(axes: Axes, one: Group, look: Look, offset: float, of: Callable[[Run], list[float]]) -> None:
    measured = [values for run in one.runs if (values := of(run))]
    if not measured or len({len(values) for values in measured}) > 1:
        return
    table: NDArray[np.float64] = np.array(measured)
    counted = np.flatnonzero(~np.isnan(table).all(axis=0))
    table = table[:, counted]
    middle, low, high = np.nanmedian(table, axis=0), np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    axes.errorbar(
        counted + offset, middle, yerr=[middle - low, high - middle], label=one.label,
        color=look.colour, marker=look.marker, fillstyle=look.fill, linestyle="none",
        markersize=4, markeredgewidth=0.8, elinewidth=0.8,
    )  # fmt: skip
