"""Callbacks that make workers late, slow or dead for real."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import lightning.pytorch as pl

from lwpd_lightning.injection import cgroup
from lwpd_lightning.injection.stragglers import StragglerModel
from lwpd_lightning.worker_callback import WorkerCallback


def _workers(trainer: pl.Trainer) -> int:
    # A dedicated coordinator is a rank, but no worker; a strategy without a code has no other ranks than workers.
    code = getattr(trainer.strategy, "code", None)
    return int(code.n) if code is not None else trainer.world_size


def _refuse_rank_zero(trainer: pl.Trainer, setting: str, named: Iterable[int], can: str) -> None:
    """Raise ValueError where a setting names rank 0's worker, or one that the run does not have."""
    workers = _workers(trainer)
    others = range(0 if workers < trainer.world_size else 1, workers)  # a dedicated coordinator is no worker
    for worker in named:
        if worker not in others:
            raise ValueError(
                f"{setting} names worker {worker}, but only workers {others.start} to {others.stop - 1} of the run "
                f"can {can}"
            )


class StragglerInjector(WorkerCallback):
    """Makes workers late for real: a computed codeword is held back as long as ``model`` says.

    Args:
        model: the delays, in seconds, by worker and version.

    Raises:
        ValueError: at setup, where the model does not fit the number of workers.
    """

    def __init__(self, model: StragglerModel) -> None:
        self.model = model

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model that is not for this many workers."""
        self.model.check(_workers(trainer))

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Sleep as long as this worker is late."""
        self.hold_back(worker, version, compute_s)

    def hold_back(self, worker: int, step: int, compute_s: float) -> None:
        """Sleep as long as ``worker`` is late at ``step``, for which it computes ``compute_s`` seconds."""
        time.sleep(self.model.delay_s(worker, step, compute_s))


class CpuShare(WorkerCallback):
    """Makes workers slow as a crowded machine does: a cgroup holds a worker's process to its share of one core.

    From its first codeword on, all that the process does counts, its links and all threads too. How late it is follows
    from the kernel and not from a seed: delays that are the same for every scheme are `StragglerInjector`'s.

    Rank 0 decides for all and validates, so that its worker cannot be slowed alone: no share for worker 0, unless the
    coordinator is dedicated. Rank 0 removes the cgroups when the fit or at the latest the process ends; what a killed
    rank 0, or a worker on another machine, leaves there is removed by the next run on that machine.

    Args:
        shares: worker -> share of one core's time, 0.001 to 1.

    Raises:
        ValueError: for another share; at setup, for a worker that the run does not have, for rank 0's, and where no
            cgroup with a limit may be made.
    """

    def __init__(self, shares: Mapping[int, float]) -> None:
        self.shares = dict(shares)
        for worker, share in self.shares.items():
            if not cgroup.LEAST_SHARE <= share <= 1:
                raise ValueError(
                    f"shares[{worker}]={share} is no share of a core: use a number from {cgroup.LEAST_SHARE:g} to 1."
                )
        self._parent: Path | None = None
        self._owner = self._held = 0  # the process that answers for the cgroups, and the one that was moved

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot be."""
        if stage == "fit":
            self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raises ValueError where the shares do not fit the run or the machine; removes what earlier runs left."""
        _refuse_rank_zero(trainer, "shares", self.shares, "be held to one: rank 0 works for all others too.")
        if self._parent is not None or not self.shares:  # known since before this process was forked
            return
        try:
            self._parent, self._owner = cgroup.place(max(self.shares.values())), os.getpid()
        except OSError as error:
            raise ValueError(
                f"shares={self.shares} needs a cgroup whose CPU time this process may limit ({error}): run as root "
                "where cgroups are mounted writable, or let workers sleep instead (straggler=one_slow)."
            ) from None
        cgroup.remove(self._parent)
        atexit.register(cgroup.remove, self._parent)  # after a fit that failed, workers outlive the callbacks' hooks

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Move to the cgroup, once."""
        if worker in self.shares and self._held != os.getpid():
            assert self._parent is not None
            cgroup.hold(self._parent, self._owner, worker, self.shares[worker])
            self._held = os.getpid()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the cgroups: the workers have ended."""
        if self._parent is not None and trainer.is_global_zero:
            cgroup.remove(self._parent)


class FaultInjector(WorkerCallback):
    """Kills chosen workers (SIGKILL) when they are about to compute a version, for good: none is started again.

    Args:
        kills: worker -> the first version (update) that it does not live to compute.

    Raises:
        ValueError: for a negative worker or version; at setup, for a worker that the run does not have, and for rank 0.
    """

    def __init__(self, kills: Mapping[int, int]) -> None:
        self._kills = dict(kills)
        for worker, version in self._kills.items():
            if worker < 0 or version < 0:
                raise ValueError(f"kills[{worker}]={version} names no worker or no version: use numbers >= 0.")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse workers whose death would never come."""
        _refuse_rank_zero(trainer, "kills", self._kills, "be killed: nothing survives rank 0.")

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Die where it is this worker's turn; rank 0 lives, since nothing survives its coordinator."""
        if version >= self._kills.get(worker, version + 1) and not trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)

    def stays_dead(self, worker: int) -> bool:
        """Whoever is killed here."""
        return worker in self._kills
