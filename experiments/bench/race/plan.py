"""What is raced: schemes x links x stragglers x seeds on a workload, and the grid that each scheme is tuned on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .grids import GRIDS, LOCAL_STEPS, POWERSGD, Grid

RANKS = 8  # unless asked for others

OURS = ("lwpd", "local", "sketch", "whitened")
_OVER_GLOO = ("ddp", "ddp_bf16", *POWERSGD, "onebit_adam", *LOCAL_STEPS)
PEERS = ("k_async", "k_async_int8", "k_sync", "gradient_coding", "sync", *_OVER_GLOO)
SCHEMES = (*OURS, *PEERS)
ALONE = "alone"  # not raced: ranks that exchange nothing, for the bound
# Schemes that leave no rank out, whoever is late.
_ALL_RANKS = ("sync", *_OVER_GLOO, ALONE)
_ALONE_UPDATES = 60


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


class Regime(NamedTuple):
    """What is compared is of one regime: workload, links, stragglers and the number of workers."""

    workload: str
    links: str
    straggler: str
    ranks: int = RANKS

    @property
    def label(self) -> str:
        """For names of files and directories."""
        return "-".join(self[:3]) + (f"-{self.ranks}ranks" if self.ranks != RANKS else "")

    @property
    def undisturbed(self) -> Regime:
        """The same workload on as many ranks, where neither links nor stragglers hold anybody up."""
        return self._replace(links="unshaped", straggler="none")

    def race(self, scheme: str, seed: int, point: int) -> Race:
        """A run of a scheme here."""
        return Race(self.workload, self.links, self.straggler, scheme, seed, point, self.ranks)


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        preset: under conf/experiment.
        grid: overrides of the optimizer, the same for every scheme without settings of its own.
        limit_s: a race that has not reached its target by then has not.
        tuning_limit_s: the same of a point of the grid.
    """

    preset: str
    grid: tuple[tuple[str, ...], ...]
    limit_s: float
    tuning_limit_s: float


WORKLOADS = {
    "mlp": Workload(
        "race_mlp",
        (
            # With momentum, and without, which suits error feedback; to where the best schemes begin to diverge.
            ("model.optimizer.lr=0.05",),
            ("model.optimizer.lr=0.1",),
            ("model.optimizer.lr=0.2",),
            ("model.optimizer.lr=1.0", "model.optimizer.momentum=0.0"),
        ),
        limit_s=240.0,
        tuning_limit_s=80.0,
    ),
    "cnn": Workload(
        "race_cnn",
        (
            ("model.optimizer.lr=0.05",),
            ("model.optimizer.lr=0.1",),
            ("model.optimizer.lr=0.2", "model.optimizer.momentum=0.0"),
            ("model.optimizer.lr=0.5", "model.optimizer.momentum=0.0"),
        ),
        limit_s=240.0,
        tuning_limit_s=80.0,
    ),
    "gpt": Workload(
        "race_gpt",
        (
            ("model.optimizer.lr=0.001", "model.optimizer.betas=[0.9,0.95]"),
            ("model.optimizer.lr=0.002", "model.optimizer.betas=[0.9,0.95]"),
            # Less momentum, which suits error feedback.
            ("model.optimizer.lr=0.001", "model.optimizer.betas=[0.5,0.95]"),
        ),
        limit_s=600.0,
        tuning_limit_s=300.0,
    ),
    "gpt10m": Workload(
        "race_gpt10m",
        (
            ("model.optimizer.lr=0.0005", "model.optimizer.betas=[0.9,0.95]"),
            ("model.optimizer.lr=0.001", "model.optimizer.betas=[0.9,0.95]"),
            ("model.optimizer.lr=0.001", "model.optimizer.betas=[0.5,0.95]"),
        ),
        limit_s=3600.0,
        tuning_limit_s=1800.0,
    ),
}


def grid_of(workload: str, scheme: str) -> Grid:
    """The points at which a scheme is tuned: all schemes have equally many."""
    return GRIDS[workload].get(scheme, WORKLOADS[workload].grid)


# Points of the grid of mlp at which the full race runs these, on even links without stragglers.
QUICK = {"ddp": 2, "powersgd": 3, "k_async": 3, "sketch": 3}
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
        return f"{self.regime.label}-{self.scheme}-point{self.point}-seed{self.seed}"

    @property
    def regime(self) -> Regime:
        """Where it is run."""
        return Regime(self.workload, self.links, self.straggler, self.ranks)

    @property
    def tuned_in(self) -> Regime:
        """Where its scheme is tuned: in its regime.

        Updates that wait for all ranks are the same whatever links and stragglers are, so that one tuning, on unshaped
        links without stragglers, is that of all regimes.
        """
        return self.regime.undisturbed if self.judged_by_updates else self.regime

    @property
    def judged_by_updates(self) -> bool:
        """Whether all points of its grid take equally long an update: the best one needs the fewest.

        Points that differ in what is sent do not.
        """
        return self.wait_for == self.ranks and self.scheme not in (*POWERSGD, *LOCAL_STEPS)

    @property
    def counts(self) -> bool:
        """Whether it stands for its scheme: neither tuning, nor ranks alone."""
        return self.seed != TUNING_SEED and self.scheme != ALONE

    @property
    def wait_for(self) -> int | None:
        """K; None: adaptive.

        Short codewords wait for all where nobody is late, so that nothing is left for later.
        """
        if self.scheme in _ALL_RANKS:
            return self.ranks
        if self.scheme in ("sketch", "whitened"):
            return self.ranks if self.straggler == "none" else None
        return 3 * self.ranks // 4

    @property
    def dedicated(self) -> bool:
        """Whether rank 0 only coordinates, as one more process on worker 0's host.

        Otherwise no update could be made while rank 0 itself is late.
        """
        return self.scheme not in _ALL_RANKS and self.straggler != "none"

    @property
    def hosts(self) -> list[int]:
        """The host of each rank."""
        return [0] * self.dedicated + list(range(self.ranks))

    def overrides(self) -> list[str]:
        """Hydra overrides of `experiments.train`, the same on every rank.

        >>> Race("mlp", "even", "none", "ddp", seed=0, point=1).overrides()[:3]
        ['experiment=race_mlp', 'scheme=ddp', 'straggler=none']
        """
        return [
            f"experiment={WORKLOADS[self.workload].preset}",
            f"scheme={self.scheme}",
            f"straggler={self.straggler}",
            "code=lwpd_8_4_2",
            f"code.n={self.ranks}",
            f"code.k={self.ranks // 2}",
            f"code.wait_for={self.wait_for or 'adaptive'}",
            *["scheme.strategy.dedicated_coordinator=true"] * self.dedicated,
            # As the peers' ranks do.
            *["scheme.strategy.validation=shared"] * (self.scheme not in (*_OVER_GLOO, ALONE)),
            f"seed={self.seed}",
            f"tags=[{self.links}]",
            "trainer.devices=1",
            f"+trainer.num_nodes={len(self.hosts)}",
            f"+callbacks.first_update._target_={__package__}.traffic.FirstUpdate",
            *grid_of(self.workload, self.scheme)[self.point],
            *(["callbacks.stop=null", f"trainer.max_steps={_ALONE_UPDATES}"] if self.scheme == ALONE else []),
        ]


def race_of(row: Mapping[str, Any]) -> Race:
    """The race that a row of results is of."""
    return Race(**{name: row[name] for name in Race.__dataclass_fields__})


def tuning(regimes: Iterable[Regime], schemes: Iterable[str]) -> list[Race]:
    """Every point of the grid for every scheme, wherever it is tuned, on a seed that is not raced, in random order."""
    schemes = list(schemes)
    wanted = [regime.race(scheme, TUNING_SEED, 0) for regime in regimes for scheme in schemes]
    tuned = dict.fromkeys((race.tuned_in, race.scheme) for race in wanted)
    races = [
        regime.race(scheme, TUNING_SEED, point)
        for regime, scheme in tuned
        for point in range(len(grid_of(regime.workload, scheme)))
    ]
    random.Random(0).shuffle(races)
    return races


def races(points: Mapping[tuple[Regime, str], int], seeds: Iterable[int]) -> list[Race]:
    """The races at the chosen points, in random order, so that a drift of the machine's speed favours nobody."""
    seeds = list(seeds)
    planned = [regime.race(scheme, seed, point) for (regime, scheme), point in points.items() for seed in seeds]
    random.Random(1).shuffle(planned)
    return planned


def alone(regimes: Iterable[Regime], seeds: Iterable[int]) -> list[Race]:
    """What each workload takes on so many ranks that exchange nothing."""
    wanted = dict.fromkeys(regime.undisturbed for regime in regimes)
    return [regime.race(ALONE, seed, 0) for regime in wanted for seed in seeds]
