"""What no exchange can beat: an update takes as long as its K-th fastest codeword, or the busiest link's bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lwpd_lightning.injection.stragglers import SlowWorkers, StragglerModel

from ...names import CONFIG_PATH
from .plan import links_of, race_of

_BISECTIONS = 20


def update_s(row: Mapping[str, Any]) -> float:
    """Seconds of one update of a race, from the first one on: before it, processes find each other."""
    whole_s = row["time_to_target_s"] if row["reached"] else row["fit_s"] - row["startup_s"]
    return float(whole_s / max(1, row["updates"] - 1))


def bytes_of_update(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Bytes of one update that each host's interface sent and received."""
    updates = max(1.0, row["updates"] - 1 - row["first_late_s"] / update_s(row))
    first = zip(row["first_sent"], row["first_received"], strict=True)
    total = zip(row["sent"], row["received"], strict=True)
    return [((s - s0) / updates, (r - r0) / updates) for (s, r), (s0, r0) in zip(total, first, strict=True)]


def bound_s(row: Mapping[str, Any], least_s: float = 0.0) -> float:
    """The least time of an update: max(computing of the K-th fastest rank, bytes / rate of the busiest link).

    Computing: what the run's ranks took for a codeword (waiting for a core included, where ranks share cores), but no
    less than K/n of ``least_s``, an update of n ranks that exchange nothing: so much must be computed for each update.
    `until_kth_s` adds who is late, by the very delays of the run. Where K is adaptive, its mean is what counted. The
    bytes are those that the run's hosts sent and received, each way of each link by itself.
    """
    race = race_of(row)
    wait_for = float(race.wait_for or max(1.0, row["arrivals_mean"]))
    model, drop = _lateness(race.scheme, race.straggler, race.seed)
    computing = until_kth_s(
        model,
        race.ranks,
        wait_for,
        max(row["compute_s_mean"], least_s * wait_for / race.ranks),
        drop=drop,
        updates=row["updates"],
        adaptive=race.wait_for is None,
    )
    links = links_of(race.links)
    if links.mbit is None or not row.get("first_sent"):  # over before its start could be told apart
        return computing
    rates = [links.coordinator_mbit or links.mbit, *[links.mbit] * (race.ranks - 1)]
    return max(
        computing, *(max(ways) / (mbit * 1e6 / 8) for ways, mbit in zip(bytes_of_update(row), rates, strict=True))
    )


@cache  # Hydra takes half a second, and the race's tables are drawn anew after every run
def _lateness(scheme: str, straggler: str, seed: int) -> tuple[StragglerModel, bool]:
    """Who is late, and whether what comes too late is dropped."""
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        cfg = compose("train", overrides=[f"scheme={scheme}", f"straggler={straggler}", f"seed={seed}"])
    model = instantiate(cfg.straggler.model) if cfg.straggler else SlowWorkers()
    return model, cfg.scheme.strategy.get("stale") == "drop"


def until_kth_s(
    model: StragglerModel,
    ranks: int,
    wait_for: float,
    compute_s: float,
    *,
    drop: bool,
    updates: int,
    adaptive: bool = False,
) -> float:
    """Mean seconds of an update that closes with its K-th codeword, where all else takes no time.

    A worker that is late stays so until its codeword is computed, however many updates close meanwhile. Then the
    codeword counts at once, or is dropped and the worker begins one of the newest version.

    Args:
        model: who is late, and by how much.
        ranks: n.
        wait_for: K; where it is adaptive, its mean.
        compute_s: seconds of a codeword that is not late.
        drop: codewords of older versions do not count.
        updates: that are averaged over: the first ones of the model's delays.
        adaptive: each update has its own K, chosen by one who knows how late everybody will be: the greatest
            ``price * K - seconds``, at the price that brings ``wait_for`` codewords on average.

    >>> until_kth_s(SlowWorkers(delays={2: 1.0}), ranks=3, wait_for=2, compute_s=0.25, drop=False, updates=10)
    0.25
    """

    def alternating(update: int, waits: list[float]) -> int:
        return math.floor((update + 1) * wait_for) - math.floor(update * wait_for)

    def priced(price: float) -> Callable[[int, list[float]], int]:
        return lambda update, waits: max(range(1, ranks + 1), key=lambda count: price * count - waits[count - 1])

    simulated = partial(_simulated, model, ranks, compute_s, drop, updates)
    seconds = simulated(alternating)[0]
    if not adaptive:
        return seconds
    cheap, dear = 0.0, simulated(lambda update, waits: ranks)[0]
    for _ in range(_BISECTIONS):
        price = (cheap + dear) / 2
        taken, counted = simulated(priced(price))
        if counted >= wait_for:
            seconds, dear = min(seconds, taken), price
        else:
            cheap = price
    return seconds


def _simulated(
    model: StragglerModel,
    ranks: int,
    compute_s: float,
    drop: bool,
    updates: int,
    count: Callable[[int, list[float]], int],
) -> tuple[float, float]:
    """Mean seconds and codewords of updates that close with as many as ``count(update, seconds until each)`` says."""
    free_at, now, counted = [0.0] * ranks, 0.0, 0
    for update in range(updates):
        begins = [max(now, free) for free in free_at]
        ready = [
            begin + compute_s + model.delay_s(rank, update, compute_s) if drop or free_at[rank] <= now else begin
            for rank, begin in enumerate(begins)
        ]
        in_turn = sorted(ready)
        now = in_turn[count(update, [at - now for at in in_turn]) - 1]
        counted += sum(at <= now for at in ready)
        free_at = [r if begin < now else free for r, begin, free in zip(ready, begins, free_at, strict=True)]
    return now / updates, counted / updates
