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

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from experiments.bench.race.plan import ALONE, PEERS, TUNING_SEED, WORKLOADS, Race, Regime, links_of
from experiments.train import CONFIG_PATH

Row = dict[str, Any]
_BEYOND = 1.25
_BOUND_STEPS = 2000  # steps of the straggler model that the bound averages over


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

        Soonest is in the fewest updates where they wait for all ranks, whose time is the same at any point.
        """
        best: dict[tuple[Regime, str], tuple[tuple[float, float], int]] = {}
        for row in self.rows:
            race = race_of(row)
            if race.seed != TUNING_SEED:
                continue
            key = race.regime, race.scheme
            time_s = row["time_to_target_s"] if row["reached"] else math.inf
            waits_for_all = race.wait_for == race.ranks
            merit = (row["updates"] if waits_for_all and row["reached"] else time_s, time_s)
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


def race_of(row: Row) -> Race:
    """The race that a row is of."""
    return Race(**{name: row[name] for name in Race.__dataclass_fields__})


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


def update_s(row: Row) -> float:
    """Seconds of one update, from the first one on: before it, processes find each other."""
    whole_s = row["time_to_target_s"] if row["reached"] else row["fit_s"] - row["startup_s"]
    return float(whole_s / max(1, row["updates"] - 1))


def bytes_of_update(row: Row) -> list[tuple[float, float]]:
    """Bytes of one update that each host's interface sent and received."""
    updates = max(1.0, row["updates"] - 1 - row["first_late_s"] / update_s(row))
    first = zip(row["first_sent"], row["first_received"], strict=True)
    total = zip(row["sent"], row["received"], strict=True)
    return [((s - s0) / updates, (r - r0) / updates) for (s, r), (s0, r0) in zip(total, first, strict=True)]


def bound_s(row: Row, least_s: float = 0.0) -> float:
    """The least time of an update: max(computing of the K-th fastest rank, bytes / rate of the busiest link).

    Computing: what the run's ranks took for a codeword (waiting for a core included, where ranks share cores), but no
    less than ``least_s``, an update of as many ranks that exchange nothing (`alone_s`); on top of it the K-th smallest
    delay, averaged over steps of the straggler model. The bytes are those that the run's hosts sent and received, each
    way of each link by itself.
    """
    race = race_of(row)
    wait_for = race.wait_for or max(1, round(row["arrivals_mean"]))
    computing = _kth_fastest_s(race, max(row["compute_s_mean"], least_s), wait_for)
    links = links_of(race.links)
    if links.mbit is None:
        return computing
    rates = [links.coordinator_mbit or links.mbit, *[links.mbit] * (race.ranks - 1)]
    if not row.get("first_sent"):  # over before its start could be told apart
        return computing
    return max(
        computing, *(max(ways) / (mbit * 1e6 / 8) for ways, mbit in zip(bytes_of_update(row), rates, strict=True))
    )


def _kth_fastest_s(race: Race, compute_s: float, wait_for: int) -> float:
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        cfg = compose("train", overrides=[f"straggler={race.straggler}", f"seed={race.seed}"])
    if not cfg.straggler:  # stragglers: none
        return compute_s
    model = instantiate(cfg.straggler.model)
    steps = [sorted(model.delay_s(w, step, compute_s) for w in range(race.ranks)) for step in range(_BOUND_STEPS)]
    return compute_s + statistics.fmean(delays[wait_for - 1] for delays in steps)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan
