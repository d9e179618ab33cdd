"""Columns of a run's log, and the learning curve in them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
# Name of a series -> its column; all columns of one run have a row for each time that something was logged, NaN where
# it was something else.
Series = dict[str, Column]
Wanted = Callable[[str], bool]

_NAN = float("nan")
_TRAFFIC = ("exchange/bytes_up", "exchange/bytes_down")


def read_metrics(path: Path, wanted: Wanted) -> Series:
    """Wanted columns of a CSVLogger's `metrics.csv`, in the order of logging; empty where there is no file.

    Raises:
        ValueError: a cell of theirs is no number.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        places = [place for place, name in enumerate(names) if wanted(name)]
        if not places:
            return {}
        pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        # A killed run's last line may end early.
        try:
            cells = [[float(cell) if cell else _NAN for cell in pick(row)] for row in rows if len(row) == len(names)]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path.name} is broken at line {rows.line_num}: {error}") from None
    table = np.array(cells, dtype=np.float64).reshape(-1, len(places))
    return {names[place]: table[:, column] for column, place in enumerate(places)}


def columns(rows: Iterable[Mapping[str, object]], wanted: Wanted) -> Series:
    """Wanted columns of rows that are mappings, as W&B keeps them.

    >>> series = columns([{"step": 1, "loss": 0.5}, {"step": 2, "image": {}}], lambda name: name != "image")
    >>> series["step"].tolist(), series["loss"].tolist()
    ([1.0, 2.0], [0.5, nan])
    """
    rows = list(rows)
    names = sorted({name for row in rows for name in row if wanted(name)})
    return {name: np.array([_number(row.get(name)) for row in rows], dtype=np.float64) for name in names}


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]  # "NaN" and "Infinity" are how JSON carries them
    except (TypeError, ValueError):
        return _NAN


@dataclass(frozen=True)
class Curve:
    """A metric at every validation of one fit, and what had been spent by then.

    Attributes:
        value: the metric, NaN where a validation gave no number (the model diverged).
        updates: updates made.
        wall: seconds since the start of `fit`, NaN where the log does not tell.
        bytes: over all links, both ways; NaN where no exchange was monitored.
    """

    value: Column
    updates: Column
    wall: Column
    bytes: Column

    def spent(self, axis: str) -> Column:
        """What had been spent of `axis`: wall, bytes or updates."""
        spent: Column = getattr(self, axis)
        return spent

    def first_reach(self, target: float, minimised: bool) -> int | None:
        """Index of the first validation that meets the target."""
        met = np.flatnonzero(self.value <= target if minimised else self.value >= target)
        return int(met[0]) if met.size else None


def of_curve(metric: str) -> Wanted:
    """Which series the learning curve of `metric` is made of."""
    names = {metric, "step", "val_wall_s", "exchange/update_s", *_TRAFFIC}
    return names.__contains__


def learning_curve(series: Series, metric: str, startup_s: float | None) -> Curve:
    """The learning curve in a run's log, whose order says what came before what.

    Validation after `fit` repeats the last one and is left out. Logs without `val_wall_s` tell the time by their
    updates: the first ends `startup_s` after the start of `fit`.

    >>> nan = float("nan")
    >>> series = {
    ...     "step": np.array([1, 2, 1, 3, 4, 3, 4]),
    ...     "exchange/update_s": np.array([0.5, 0.25, nan, 0.25, 0.25, nan, nan]),
    ...     "exchange/bytes_up": np.array([10, 10, nan, 10, 10, nan, nan]),
    ...     "val_acc": np.array([nan, nan, 0.5, nan, nan, 0.75, 0.75]),
    ... }
    >>> curve = learning_curve(series, "val_acc", startup_s=2.0)
    >>> curve.value.tolist(), curve.updates.tolist(), curve.wall.tolist(), curve.bytes.tolist()
    ([0.5, 0.75], [2.0, 4.0], [2.25, 2.75], [20.0, 40.0])
    """
    if metric not in series:
        return Curve(*(np.empty(0) for _ in range(4)))
    values = series[metric]
    missing = np.full(len(values), _NAN)
    at = np.flatnonzero(~np.isnan(values))
    update_s = series.get("exchange/update_s", missing)
    is_update = ~np.isnan(update_s)
    step = series.get("step", missing)
    # An update is logged with its number, which a continued run counts on from its checkpoint.
    updates = np.maximum.accumulate(np.where(is_update, step, 0.0)) if is_update.any() else step + 1.0
    traffic = sum((np.nan_to_num(series[name]) for name in _TRAFFIC if name in series), np.zeros(len(values)))
    spent = np.cumsum(traffic) if is_update.any() and any(name in series for name in _TRAFFIC) else missing

    clock = np.flatnonzero(~np.isnan(series.get("val_wall_s", missing)))
    if clock.size:
        # The clock is logged right after its validation, whose metric is NaN where none was logged since the last one.
        last = np.searchsorted(at, clock) - 1
        own = np.diff(last, prepend=-1) > 0
        value = missing[clock]
        value[own] = values[at[last[own]]]
        counted = updates if is_update.any() else updates - 1.0  # its step is the number of updates
        return Curve(value, counted[clock], series["val_wall_s"][clock], spent[clock])
    at = at[_no_repeat(updates[at])]
    return Curve(values[at], updates[at], _by_updates(update_s, startup_s)[at], spent[at])


def _no_repeat(updates: Column) -> NDArray[np.bool_]:
    return np.diff(updates, prepend=-1.0) > 0


def _by_updates(update_s: Column, startup_s: float | None) -> Column:
    passed = np.nan_to_num(update_s)
    first = np.flatnonzero(~np.isnan(update_s))[:1]
    if not first.size or startup_s is None:
        return np.full(len(update_s), _NAN)
    wall: Column = startup_s + np.cumsum(passed) - passed[first[0]]
    return wall
