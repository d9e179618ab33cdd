"""Straggler models: how many seconds a worker is late with a step, as pure functions of (seed, worker, step).

Nothing here sleeps. `StragglerInjector` makes real workers late by these delays, whatever scheme they run and in
whatever order they ask; a simulator adds them to its own clock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lwpd_lightning.data import derive_seed


class StragglerModel(ABC):
    """Delays in seconds, each a pure function of its arguments and the model's own fields."""

    @abstractmethod
    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """How late ``worker`` is at ``step`` (the version that it computes at), in seconds >= 0.

        Args:
            worker: from 0.
            step: from 0.
            compute_s: seconds that the worker really computes for the step.
        """

    def check(self, workers: int) -> None:  # noqa: B027 - most models fit any number
        """Raises ValueError where the model does not fit a run of so many workers."""


def uniform(seed: int, worker: int, step: int) -> float:
    """A number in the open interval (0, 1), a multiple of 2^-53, from a hash of the key.

    >>> uniform(0, 1, 2) == uniform(0, 1, 2) != uniform(0, 2, 1)
    True
    """
    return ((derive_seed(seed, worker, step) >> 11) + 0.5) / 2**52


@dataclass(frozen=True)
class SlowWorkers(StragglerModel):
    """Chosen workers are always slow.

    Args:
        slowdown: worker -> factor (>= 1) on its computing time.
        delays: worker -> extra seconds at every step.

    Raises:
        ValueError: for a factor below 1 or a negative delay.

    >>> SlowWorkers(slowdown={1: 5.0}).delay_s(1, 0, compute_s=0.25)
    1.0
    """

    slowdown: Mapping[int, float] = field(default_factory=dict)
    delays: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for worker, factor in self.slowdown.items():
            if not 1 <= factor < math.inf:
                raise ValueError(f"slowdown[{worker}]={factor} would be faster than real: use a factor >= 1.")
        for worker, seconds in self.delays.items():
            if not 0 <= seconds < math.inf:
                raise ValueError(f"delays[{worker}]={seconds} is no delay: use seconds >= 0.")

    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """The worker's extra seconds and what its factor adds to ``compute_s``."""
        return self.delays.get(worker, 0.0) + (self.slowdown.get(worker, 1.0) - 1.0) * compute_s

    def check(self, workers: int) -> None:
        """Raises ValueError where a slow worker does not exist."""
        for name, chosen in (("slowdown", self.slowdown), ("delays", self.delays)):
            for worker in chosen:
                if not 0 <= worker < workers:
                    raise ValueError(f"{name} names worker {worker}, but the run has workers 0 to {workers - 1}.")


@dataclass(frozen=True)
class ShiftedExponential(StragglerModel):
    """Every step of every worker is late by ``shift_s`` and an exponential time of mean ``mean_s``.

    The model of Lee et al., "Speeding Up Distributed Machine Learning Using Codes" (2018): P(D > d) =
    exp(-(d - shift_s) / mean_s) for d >= shift_s.

    Args:
        mean_s: mean of the exponential part, seconds > 0.
        shift_s: the least delay, seconds >= 0.
        seed: keys the delays.

    Raises:
        ValueError: for a mean that is not positive, or a negative shift.
    """

    mean_s: float
    shift_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unless_positive("mean_s", self.mean_s)
        if not 0 <= self.shift_s < math.inf:
            raise ValueError(f"shift_s={self.shift_s} is no delay: use seconds >= 0.")

    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """Drawn for (worker, step), whatever ``compute_s`` is."""
        return self.shift_s - self.mean_s * math.log(uniform(self.seed, worker, step))


@dataclass(frozen=True)
class Pareto(StragglerModel):
    """Every step of every worker is late by a Pareto time: P(D > d) = (least_s / d)^shape for d >= least_s.

    Args:
        least_s: the least delay, seconds > 0.
        shape: tail index > 0; the mean is finite above 1, the variance above 2.
        seed: keys the delays.

    Raises:
        ValueError: for a least delay or a shape that is not positive.
    """

    least_s: float
    shape: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unless_positive("least_s", self.least_s)
        _refuse_unless_positive("shape", self.shape)

    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """Drawn for (worker, step), whatever ``compute_s`` is."""
        return self.least_s * math.pow(uniform(self.seed, worker, step), -1.0 / self.shape)


@dataclass(frozen=True)
class SlowTail(StragglerModel):
    """Now and then a step is late by a fixed time: each step of each worker with the same probability.

    Args:
        probability: of a late step, in [0, 1].
        seconds: how late it is, >= 0.
        seed: keys who is late when.

    Raises:
        ValueError: for a probability outside of [0, 1] or negative seconds.
    """

    probability: float
    seconds: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} is none: use a number from 0 to 1.")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds={self.seconds} is no delay: use seconds >= 0.")

    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """``seconds`` or nothing, whatever ``compute_s`` is."""
        return self.seconds if uniform(self.seed, worker, step) < self.probability else 0.0


@dataclass(frozen=True, eq=False)
class Trace(StragglerModel):
    """Delays that were recorded elsewhere; past its last step the trace starts again.

    Args:
        delays_s: (workers, steps) seconds >= 0.

    Raises:
        ValueError: for another shape, or numbers that are no delays.
    """

    delays_s: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.delays_s.ndim != 2 or not self.delays_s.size:
            raise ValueError(f"a trace of shape {self.delays_s.shape} holds no delays: use workers x steps.")
        if not (np.isfinite(self.delays_s) & (self.delays_s >= 0)).all():
            raise ValueError("a trace holds negative or infinite delays, or no numbers: use seconds >= 0.")

    @classmethod
    def from_file(cls, path: str) -> Trace:
        """Read a trace: one line for each worker, one number of seconds for each step, commas between them.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        if not Path(path).is_file():
            raise ValueError(f"path={path} is no file: use one with a line of delays in seconds for each worker.")
        try:
            return cls(np.loadtxt(path, delimiter=",", ndmin=2))
        except ValueError as error:
            raise ValueError(f"path={path} is no trace: {error}") from None

    def delay_s(self, worker: int, step: int, compute_s: float) -> float:
        """What was recorded, whatever ``compute_s`` is."""
        return float(self.delays_s[worker, step % self.delays_s.shape[1]])

    def check(self, workers: int) -> None:
        """Raises ValueError where the trace has fewer workers than the run."""
        if workers > len(self.delays_s):
            raise ValueError(f"the trace holds {len(self.delays_s)} workers but the run has {workers}: record as many.")


def _refuse_unless_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} is not positive: use a number above 0.")
