"""Rows of finished races: kept on disk one by one, summed up by scheme, and held against what no scheme can beat."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bound import bound_s, bytes_of_update, update_s
from .plan import ALONE, PEERS, TUNING_SEED, WORKLOADS, Race, Regime, race_of

Row = dict[str, Any]
_BEYOND = 1.25


class Results:
    """One JSON line for each finished race, so that a race that was interrupted goes on where it was.

    Args:
        path: the file; made when the first row is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, row: Row) -> None:
        """Keep a row, on disk before this returns."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has(self, race: Race) -> bool:
        """Whether the race has been run."""
        return any(all(row[name] == value for name, value in vars(race).items()) for row in self.rows)

    def limit_s(self, race: Race) -> float:
        """How long the race may take: a point of the grid need not be followed far beyond the best one's time."""
        workload = WORKLOADS[race.workload]
        if race.seed != TUNING_SEED:
            return workload.limit_s
        same = [row for row in self.rows if (row["seed"], row["scheme"]) == (TUNING_SEED, race.scheme)]
        walls = [row["wall_s"] for row in same if race_of(row).regime == race.regime and row["reached"]]
        return min([workload.tuning_limit_s, *(_BEYOND * wall for wall in walls)])

    def tuned(self) -> dict[tuple[Regime, str], int]:
        """(regime, scheme) -> the grid's point that reached the target soonest in tuning; the first where none did.

        Soonest is in the fewest updates where their time is the same at any point.
        """
        best: dict[tuple[Regime, str], tuple[tuple[float, float], int]] = {}
        for row in self.rows:
            race = race_of(row)
            if race.seed != TUNING_SEED:
                continue
            key = race.regime, race.scheme
            time_s = row["time_to_target_s"] if row["reached"] else math.inf
            merit = (row["updates"] if race.judged_by_updates and row["reached"] else time_s, time_s)
            if key not in best or merit < best[key][0]:
                best[key] = merit, race.point
        return {key: point for key, (_, point) in best.items()}


@dataclass(frozen=True)
class Standing:
    """One scheme in one regime, over its seeds; times in seconds, medians where not said otherwise.

    Attributes:
        scheme: its name.
        point: its point of the grid.
        runs: finished races.
        reached: those that reached the target.
        time_s: to the target; None unless most races reached it.
        spread_s: least and greatest time.
        update_s: of one update, its share of validations included.
        updates: to the target.
        kilobytes: that a host sends an update, the mean over hosts, as interfaces count; None unshaped.
        bound_s: least time of one update with this scheme's bytes (`bound_s`).
        ratio: time of the best peer over this one's: above 1 is faster than every peer.
    """

    scheme: str
    point: int
    runs: int
    reached: int
    time_s: float | None
    spread_s: tuple[float, float] | None
    update_s: float
    updates: float
    kilobytes: float | None
    bound_s: float
    ratio: float | None = None

    @property
    def bound_share(self) -> float:
        """What of an update's time the bound explains: 1 is as fast as can be."""
        return self.bound_s / self.update_s if self.update_s else 0.0


def standings(rows: Iterable[Row]) -> dict[Regime, list[Standing]]:
    """The schemes of each regime, fastest first; tuning runs do not count."""
    rows = list(rows)
    grouped: dict[Regime, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in counting(rows):
        race = race_of(row)
        grouped[race.regime][race.scheme].append(row)
    return {regime: _ranked(schemes, alone_s(rows, regime)) for regime, schemes in sorted(grouped.items())}


def counting(rows: Iterable[Row]) -> list[Row]:
    """The rows that stand for their schemes, each at the point of the grid that it was raced at last."""
    rows = [row for row in rows if race_of(row).counts]
    points = {(race_of(row).regime, row["scheme"]): row["point"] for row in rows}
    return [row for row in rows if row["point"] == points[race_of(row).regime, row["scheme"]]]


def alone_s(rows: Iterable[Row], regime: Regime) -> float:
    """Least seconds of an update of ranks that compute like the regime's and exchange nothing; 0 where not measured."""
    apart = [row for row in rows if row["scheme"] == ALONE and not row["failed"]]
    here = [row for row in apart if race_of(row).regime == regime.undisturbed]
    return min((update_s(row) for row in here), default=0.0)


def _ranked(schemes: dict[str, list[Row]], least_s: float) -> list[Standing]:
    found = [_standing(scheme, rows, least_s) for scheme, rows in schemes.items()]
    times = [s.time_s for s in found if s.scheme in PEERS and s.time_s is not None]
    best = min(times, default=None)
    ranked = [
        Standing(**{**vars(s), "ratio": best / s.time_s if best is not None and s.time_s is not None else None})
        for s in found
    ]
    return sorted(ranked, key=lambda s: (s.time_s is None, s.time_s or 0.0))


def _standing(scheme: str, rows: list[Row], least_s: float) -> Standing:
    measured = [row for row in rows if "update_s_mean" in row]
    times = [row["time_to_target_s"] for row in rows if row["reached"]]
    sent = [statistics.fmean(way[0] for way in bytes_of_update(row)) for row in measured if row.get("first_sent")]
    bounds = [bound_s(row, least_s) for row in measured]
    return Standing(
        scheme=scheme,
        point=rows[0]["point"],
        runs=len(rows),
        reached=len(times),
        time_s=statistics.median(times) if 2 * len(times) > len(rows) else None,
        spread_s=(min(times), max(times)) if times else None,
        update_s=_median([update_s(row) for row in measured]),
        updates=_median([row["updates"] for row in measured]),
        kilobytes=_median(sent) / 1e3 if sent else None,
        bound_s=_median(bounds),
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan
