"""What is raced: schemes x links x stragglers x seeds on a workload, and the grid that each scheme is tuned on."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

RANKS = 8  # unless asked for others

OURS = ("lwpd", "local", "sketch")
PEERS = ("k_async", "k_async_int8", "k_sync", "gradient_coding", "sync", "ddp", "ddp_bf16", "powersgd")
SCHEMES = (*OURS, *PEERS)
# Schemes whose updates wait for all ranks, whoever is late.
WAITS_FOR_ALL = ("sync", "ddp", "ddp_bf16", "powersgd")


@dataclass(frozen=True)
class Links:
    """Rates in Mbit/s of each host's link, both directions; None: not shaped."""

    mbit: float | None
    coordinator_mbit: float | None = None


LINKS = {
    "unshaped": Links(None),
    "even": Links(100.0),
    "asymmetric": Links(100.0, coordinator_mbit=1000.0),
}


def links_of(name: str) -> Links:
    """The links of a name, or even ones of so many Mbit/s.

    Raises:
        ValueError: for anything else.

    >>> links_of("300")
    Links(mbit=300.0, coordinator_mbit=None)
    """
    if name in LINKS:
        return LINKS[name]
    try:
        mbit = float(name)
    except ValueError:
        mbit = 0.0
    if not mbit > 0:
        raise ValueError(f"links {name!r} are unknown: use {', '.join(LINKS)} or a number of Mbit/s.")
    return Links(mbit)


STRAGGLERS = ("none", "slow_tail", "pareto", "one_slow")


@dataclass(frozen=True)
class Workload:
    """What is trained: a preset under conf/experiment, and the same grid of overrides for every scheme."""

    preset: str
    grid: tuple[tuple[str, ...], ...]
    limit_s: float  # a run that has not reached its target by then has not


WORKLOADS = {
    "mlp": Workload(
        "race_mlp",
        (
            # With momentum, and without, which suits error feedback; to where the best schemes begin to diverge.
            ("model.optimizer.lr=0.05",),
            ("model.optimizer.lr=0.1",),
            ("model.optimizer.lr=0.2",),
            ("model.optimizer.lr=0.4", "model.optimizer.momentum=0.0"),
            ("model.optimizer.lr=1.0", "model.optimizer.momentum=0.0"),
        ),
        limit_s=240.0,
    ),
    "gpt": Workload(
        "race_gpt",
        (("model.optimizer.lr=0.0005",), ("model.optimizer.lr=0.001",), ("model.optimizer.lr=0.002",)),
        limit_s=600.0,
    ),
}
TUNING_SEED = 1000  # the races' seeds start at 0


@dataclass(frozen=True, order=True)
class Race:
    """One run of one scheme; ``point`` is its place in the workload's grid, ``ranks`` the number of workers."""

    workload: str
    links: str
    straggler: str
    scheme: str
    seed: int
    point: int
    ranks: int = RANKS

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.workload}-{self.links}-{self.straggler}-{self.scheme}-point{self.point}-seed{self.seed}"

    @property
    def regime(self) -> tuple[str, str, str]:
        """Workload, links and stragglers: what is compared is of one regime."""
        return self.workload, self.links, self.straggler

    @property
    def wait_for(self) -> int | None:
        """K; None: adaptive.

        The sketch waits for all where nobody is late, so that nothing is left for later.
        """
        if self.scheme in WAITS_FOR_ALL:
            return self.ranks
        if self.scheme == "sketch":
            return self.ranks if self.straggler == "none" else None
        return 3 * self.ranks // 4

    @property
    def dedicated(self) -> bool:
        """Whether rank 0 only coordinates, as one more process on worker 0's host.

        Otherwise no update could be made while rank 0 itself is late.
        """
        return self.scheme not in WAITS_FOR_ALL and self.straggler != "none"

    @property
    def hosts(self) -> list[int]:
        """The host of each rank."""
        return [0] * self.dedicated + list(range(self.ranks))

    def overrides(self) -> list[str]:
        """Hydra overrides of `experiments.train`, the same on every rank.

        >>> Race("mlp", "even", "none", "ddp", seed=0, point=1).overrides()[:3]
        ['experiment=race_mlp', 'scheme=ddp', 'straggler=none']
        """
        workload = WORKLOADS[self.workload]
        return [
            f"experiment={workload.preset}",
            f"scheme={self.scheme}",
            f"straggler={self.straggler}",
            "code=lwpd_8_4_2",
            f"code.n={self.ranks}",
            f"code.k={self.ranks // 2}",
            f"code.wait_for={self.wait_for or 'adaptive'}",
            *["scheme.strategy.dedicated_coordinator=true"] * self.dedicated,
            f"seed={self.seed}",
            f"tags=[{self.links}]",
            "trainer.devices=1",
            f"+trainer.num_nodes={len(self.hosts)}",
            # A point of the grid at which a scheme diverges is left at once.
            "+callbacks.diverged._target_=lightning.pytorch.callbacks.EarlyStopping",
            "+callbacks.diverged.monitor=train_loss",
            "+callbacks.diverged.patience=1000000",
            "+callbacks.diverged.strict=false",
            "+callbacks.diverged.check_on_train_epoch_end=true",
            "+callbacks.first_update._target_=experiments.bench.race.traffic.FirstUpdate",
            *workload.grid[self.point],
        ]


def tuning(regimes: Iterable[tuple[str, str, str]], schemes: Iterable[str], ranks: int = RANKS) -> list[Race]:
    """Every point of the grid for every scheme and regime, on a seed that is not raced, in random order."""
    schemes = list(schemes)
    races = [
        Race(workload, links, straggler, scheme, TUNING_SEED, point, ranks)
        for workload, links, straggler in regimes
        for scheme in schemes
        for point in range(len(WORKLOADS[workload].grid))
    ]
    random.Random(0).shuffle(races)
    return races


def races(chosen: dict[tuple[tuple[str, str, str], str], int], seeds: Iterable[int], ranks: int = RANKS) -> list[Race]:
    """The races at the chosen points, in random order, so that a drift of the machine's speed favours nobody."""
    seeds = list(seeds)
    planned = [
        Race(*regime, scheme, seed, point, ranks) for (regime, scheme), point in chosen.items() for seed in seeds
    ]
    random.Random(1).shuffle(planned)
    return planned
