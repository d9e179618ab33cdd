"""Arrivals over time: in which updates each worker's codeword counted, fresh or late, and from when on it was lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .groups import Group
from .run import Run
from .style import drawing

UPDATES = 120  # columns that a reader still tells apart on a page's width
PANELS = 6

LOST, ABSENT, FRESH = -2, -1, 0
_OLDEST = 3
# Light to dark is fresh to stale; a reader of a grey print sees the same order.
_STATES = (
    (LOST, "#1A1A1A", "worker lost"),
    (ABSENT, "#FFFFFF", "not counted (not there, or dropped as stale)"),
    (FRESH, "#BFD9EC", "on time"),
    (1, "#F0A35E", "1 update late"),
    (2, "#D1642B", "2 late"),
    (_OLDEST, "#8C2D04", "3 or more late"),
)


def states(run: Run) -> NDArray[np.int64]:
    """(n, updates) of LOST, ABSENT or the staleness in updates; (0, 0) where no exchange was monitored."""
    series = run.arrivals
    n = sum(name.startswith("exchange/arrived/") for name in series)
    if not n:
        return np.empty((0, 0), dtype=np.int64)
    arrived = np.array([series[f"exchange/arrived/{worker}"] for worker in range(n)]) == 1
    stale = np.array([series[f"exchange/staleness/{worker}"] for worker in range(n)])
    table = np.where(arrived, np.nan_to_num(stale), ABSENT).astype(np.int64)
    for failure in run.summary.get("failures") or []:
        after = table[failure["worker"], failure["update"] :]
        after[after == ABSENT] = LOST  # what it sent before it died may still have counted
    return table


def typical(runs: Sequence[Run]) -> Run | None:
    """The monitored run whose mean wall time of an update is the median, the lower of two."""
    timed = [run for run in runs if states(run).size]
    timed.sort(key=lambda run: float(run.summary.get("update_s_mean") or 0.0))
    return timed[(len(timed) - 1) // 2] if timed else None


def window(table: NDArray[np.int64]) -> int:
    """First of the updates to draw: the run's middle, or the first loss of a worker a quarter into the picture."""
    updates = table.shape[1]
    lost = np.flatnonzero((table == LOST).any(axis=0))
    wanted = int(lost[0]) - UPDATES // 4 if lost.size else (updates - UPDATES) // 2
    return max(0, min(int(wanted), int(updates) - UPDATES))


def draw(path: Path, groups: Sequence[Group], newest: bool = False) -> list[str]:
    """One panel for each group; returns labels of those that are left out beyond the first `PANELS`.

    Args:
        path: of the PNG file.
        groups: some with an exchange that was monitored.
        newest: show the last updates and not those of `window`.
    """
    chosen = [(one, run, states(run)) for one in groups if (run := typical(one.runs)) is not None]
    drawn, left_out = chosen[:PANELS], [one.label for one, _, _ in chosen[PANELS:]]
    if not drawn:
        return left_out
    heights = [0.4 + 0.1 * max(4, len(table)) for _, _, table in drawn]
    colours = ListedColormap([colour for _, colour, _ in _STATES])
    norm = BoundaryNorm([state - 0.5 for state, _, _ in _STATES] + [_OLDEST + 0.5], len(_STATES))
    present: set[int] = set()
    with drawing(path, 7.1, sum(heights) + 0.7) as figure:
        panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (one, run, table) in zip(panels, drawn, strict=True):
            first = max(0, table.shape[1] - UPDATES) if newest else window(table)
            shown = np.minimum(table[:, first : first + UPDATES], _OLDEST)
            present |= set(np.unique(shown).tolist())
            end = first + shown.shape[1]
            axes.imshow(
                shown, cmap=colours, norm=norm, aspect="auto", interpolation="nearest",
                extent=(first + 0.5, end + 0.5, len(shown) - 0.5, -0.5),
            )  # fmt: skip
            for edge in np.arange(0.5, len(shown) - 1):
                axes.axhline(edge, color="white", linewidth=1.2)
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color("0.6")
            axes.set_title(
                f"{one.label}  (seed {run.get('seed')}, updates {first + 1}-{end} of {table.shape[1]})", loc="left"
            )
            axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.set_ylabel("worker")
        panels[-1].set_xlabel("update")
        handles = [
            Patch(facecolor=colour, edgecolor="0.6", linewidth=0.5, label=name)
            for state, colour, name in _STATES
            if state in present
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2)
    return left_out
