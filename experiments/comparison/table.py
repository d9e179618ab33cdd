"""What is said of each group: median and range over seeds, the ratio to its baseline, and what may be concluded."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from .groups import Group
from .run import AXES, MISSING, Run
from .statistics import LEVEL, Comparison, Spread, adjusted, compare, spread

NOTE = (
    "Time since the start of fit, bytes over all links and updates are those to the target; an update is the mean time "
    "from one to the next, validation included. Median over runs, "
    "lowest..highest below it; a run that missed the target counts as slower than all that met it. Ratio to the "
    "baseline: below 1 is cheaper. p: exact two-sided rank test (pairs are of the same seed), Holm-adjusted; "
    f"* p <= {LEVEL}; few: no result of so many runs could have reached that."
)
# Narrower consoles get each range on two lines.
_WIDE = 100
_NONE = "-"
_COST = {"wall": "time", "bytes": "bytes", "updates": "updates"}  # to the target


@dataclass(frozen=True)
class Row:
    """One group's figures.

    Attributes:
        group: the group.
        final: the target metric of the finished models.
        costs: axis -> cost to the target.
        update_s: wall time of an update, in seconds.
        baseline: what it is measured against; None where nothing is.
        comparison: with that; None for the baseline itself and where a cost is missing.
    """

    group: Group
    final: Spread | None
    costs: dict[str, Spread | None]
    update_s: Spread | None
    baseline: Group | None
    comparison: Comparison | None


def rows(groups: Sequence[Group], baselines: Mapping[int, Group], axis: str) -> list[Row]:
    """Figures of every group, compared by what the target cost on `axis`: wall, bytes or updates."""
    compared = {}
    for index, one in enumerate(groups):
        base = baselines.get(index)
        if base is not None and base is not one and (comparison := compare(_costs(one, axis), _costs(base, axis))):
            compared[index] = comparison
    compared = adjusted(compared)
    return [
        Row(
            one,
            spread([run.final for run in one.runs]),
            {name: spread([run.to_target(name) for run in one.runs]) for name in AXES},
            spread([_update_s(run) for run in one.runs]),
            baselines.get(index),
            compared.get(index),
        )
        for index, one in enumerate(groups)
    ]


def unrated(rows: Sequence[Row], axis: str) -> list[str]:
    """A line for each group that has a baseline and yet no ratio to it."""
    return [
        f"No ratio for {row.group.label}: {_why_unrated(row, axis)}."
        for row in rows
        if row.baseline is not None and row.baseline is not row.group and _ratio(row) == _NONE
    ]


def _why_unrated(row: Row, axis: str) -> str:
    if row.comparison is not None:
        return "most pairs, or the median run of either, missed the target"
    cost = row.costs[axis]
    if cost is not None and math.isinf(cost.low):
        return "no run of it or of its baseline reached the target"
    return f"its {_COST[axis]} to the target, or its baseline's, was not measured"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table as text; a cell's second line is the range over runs."""
    metrics = {row.group.metric for row in rows}
    header = [
        "group",
        "runs",
        metrics.pop() if len(metrics) == 1 else "metric",
        *_COST.values(),
        "an update",
        "ratio",
        "p",
    ]
    return header, [_cells(row, name_metric=bool(metrics)) for row in rows]


def _cells(row: Row, name_metric: bool) -> list[str]:
    final = _spread(row.final, lambda _: (1.0, ""), digits=4)
    runs = f"{len(row.group.runs)}"
    missed = row.costs["updates"].missed if row.costs["updates"] else 0
    return [
        row.group.label,
        f"{runs}\n{missed} missed" if missed else runs,
        f"{row.group.metric} {final}" if name_metric else final,
        _spread(row.costs["wall"], _seconds),
        _spread(row.costs["bytes"], bytes_unit),
        _spread(row.costs["updates"], lambda _: (1.0, "")),
        _spread(row.update_s, _seconds),
        _ratio(row),
        _p(row),
    ]


def show(console: Console, rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    header, lines = cells(rows)
    table = Table(
        title=title, title_justify="left", caption=NOTE, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in header:
        table.add_column(name, justify="left" if name == "group" else "right", overflow="fold")
    for line in lines:
        table.add_row(*(line if console.width >= _WIDE else (cell.replace("..", "\n..") for cell in line)))
    console.print(table)


def write_csv(path: Path, groups: Sequence[Group]) -> None:
    """One line for each run: where it is, its group, and its own figures; costs in seconds, bytes and updates."""
    keys = list(groups[0].values)
    names = ("updates", "wall_s", "update_s_mean", "bytes_up", "bytes_down", "staleness_mean", "dropped_codewords")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["run", "group", *keys, "seed", "metric", "final", *(f"{axis}_to_target" for axis in AXES), *names]
        )
        for one in groups:
            for run in one.runs:
                figures = [
                    run.final,
                    *(run.to_target(axis) for axis in AXES),
                    *(run.summary.get(name) for name in names),
                ]
                labels = [run.source, one.label, *one.values.values(), run.get("seed"), run.metric]
                writer.writerow([*labels, *map(_plain, figures)])


def _plain(figure: float | None) -> float | int | str:
    if figure is None or math.isnan(figure):
        return ""
    return int(figure) if float(figure).is_integer() else figure


def _costs(one: Group, axis: str) -> list[tuple[object, float]]:
    return [(run.get("seed"), run.to_target(axis)) for run in one.runs]


def _update_s(run: Run) -> float:
    if run.parts:  # the summary is the last one's
        took = run.read(lambda name: name == "exchange/update_s").get("exchange/update_s", np.empty(0))
        took = took[~np.isnan(took)]
        return float(took.mean()) if took.size else math.nan
    value = run.get("update_s_mean")
    return math.nan if value in (None, MISSING) else float(value)


def _ratio(row: Row) -> str:
    if row.baseline is row.group:
        return "base"
    if row.comparison is None or not math.isfinite(row.comparison.ratio):
        return _NONE
    return f"{row.comparison.ratio:.2f}"


def _p(row: Row) -> str:
    if row.comparison is None:
        return ""
    n = "+".join(map(str, row.comparison.n)) + (" pairs" if row.comparison.paired else " runs")
    if row.comparison.too_few:
        return f"few\n{n}"
    return f"{row.comparison.p:.2g}{'*' if row.comparison.significant else ''}\n{n}"


def _spread(value: Spread | None, unit_of: Callable[[float], tuple[float, str]], digits: int = 3) -> str:
    """Median, and below it the range; the unit once.

    >>> _spread(Spread(median=3.0, low=1.0, high=5.0, n=3, missed=0), _seconds)
    '3 s\\n1..5'
    >>> _spread(Spread(median=math.inf, low=1.0, high=math.inf, n=3, missed=2), _seconds)
    'missed\\n1s..missed'
    """
    if value is None:
        return _NONE
    if math.isinf(value.low):
        return "missed"
    scale, unit = unit_of(value.low if math.isinf(value.median) else value.median)
    middle, low = _number(value.median / scale, digits), _number(value.low / scale)
    if middle == "missed":
        low = f"{low}{unit}"  # one word, which is not broken over lines
    else:
        middle = f"{middle} {unit}".strip()
    return middle if value.n == 1 else f"{middle}\n{low}..{_number(value.high / scale)}"


def _number(value: float, digits: int = 3) -> str:
    if math.isinf(value):
        return "missed"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _seconds(value: float) -> tuple[float, str]:
    return (0.001, "ms") if value < 1 else (1.0, "s") if value < 120 else (60.0, "min")


def bytes_unit(count: float) -> tuple[float, str]:
    """(bytes, name) of the unit in which `count` reads best.

    >>> bytes_unit(56_000_000.0)
    (1000000.0, 'MB')
    """
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((unit for unit in units if count >= unit[0]), (1.0, "B"))
