"""Callbacks around the exchange: what is logged of it, and injected stragglers and faults."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lwpd_lightning import cgroup
from lwpd_lightning.stragglers import StragglerModel

if TYPE_CHECKING:
    from lwpd_lightning.exchange.update import Failure, Update


class WorkerCallback(pl.Callback):
    """A callback that also runs in worker processes, around every codeword that they compute."""

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Called before ``worker`` computes its codeword of ``version``."""

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Called when the codeword is computed, ``compute_s`` seconds after its start, before it is sent."""


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
    """Kills chosen workers (SIGKILL) when they are about to compute a version.

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


class ExchangeMonitor(pl.Callback):
    """Logs every update of the exchange to all of the trainer's loggers, and sums the fit up.

    Logged at every update, whatever ``log_every_n_steps`` says: ``exchange/loss`` (mean over contributors), ``lr``,
    ``wait_s``, ``compute_s``, ``update_s``, ``bytes_up``, ``bytes_down``, ``wait_for`` (K), ``arrivals``, ``dropped``,
    ``resyncs`` (workers that took over rank 0's state), ``live``, ``decoded_share`` (of the k task directions),
    ``staleness_mean``, and for each worker ``arrived/i`` (0 or 1),
    ``staleness/i`` (versions, NaN where it did not arrive) and ``inclusion/i`` (share of updates so far).
    """

    on_workers = False

    def __init__(self) -> None:
        self._totals = _Totals()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new fit: forget the last one."""
        if stage == "fit":
            self._totals = _Totals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the first update."""
        self._totals.parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self._totals.last_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the update that has just been applied."""
        update: Update | None = getattr(trainer.strategy, "last_update", None)
        if update is None:
            return
        update_s = self._totals.add(update, time.monotonic())
        metrics = self._series(update)
        metrics["exchange/update_s"] = update_s
        metrics["exchange/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over who was lost."""
        self._totals.failures = list(getattr(trainer.strategy, "failures", []))

    @staticmethod
    def _series(update: Update) -> dict[str, float]:
        staleness = {arrival.worker: arrival.staleness for arrival in update.arrivals}
        metrics = {
            "exchange/loss": update.loss,
            "exchange/wait_s": update.wait_s,
            "exchange/compute_s": update.compute_s,
            "exchange/bytes_up": update.bytes_up,
            "exchange/bytes_down": update.bytes_down,
            "exchange/arrivals": len(update.arrivals),
            "exchange/wait_for": update.wait_for,
            "exchange/dropped": update.dropped,
            "exchange/resyncs": update.resyncs,
            "exchange/live": update.live,
            "exchange/decoded_share": update.decoded_share,
            "exchange/staleness_mean": sum(staleness.values()) / len(staleness),
        }
        for worker, rate in enumerate(update.inclusion):
            metrics[f"exchange/arrived/{worker}"] = float(worker in staleness)
            metrics[f"exchange/staleness/{worker}"] = float(staleness.get(worker, float("nan")))
            metrics[f"exchange/inclusion/{worker}"] = rate
        return metrics

    def summary(self) -> dict[str, Any]:
        """The last fit in figures: counts, bytes over all links, seconds, staleness in versions, and who was lost.

        ``bytes_up_per_update_per_worker`` is what one codeword that travels takes, with what is told of it: of K that
        count K - 1 travel, since each position is added up by a worker that has its own codeword there.
        """
        totals = self._totals
        updates = max(1, totals.updates)
        first = totals.first_at if totals.first_at is not None else totals.last_at
        return {
            "parameters": totals.parameters,
            "updates": totals.updates,
            "samples": totals.samples,
            "startup_s": first - totals.setup_at,
            "fit_s": totals.last_at - totals.setup_at,
            "update_s_mean": totals.update_s / updates,
            "wait_s_mean": totals.wait_s / updates,
            "compute_s_mean": totals.compute_s / updates,
            "bytes_up": totals.bytes_up,
            "bytes_down": totals.bytes_down,
            "bytes_up_per_update_per_worker": totals.bytes_up / max(1, totals.uploads),
            "arrivals_mean": totals.arrivals / updates,
            "late_codewords": totals.late,
            "dropped_codewords": totals.dropped,
            "resyncs": totals.resyncs,
            "decoded_share_mean": totals.decoded_share / updates,
            "staleness_mean": totals.staleness / max(1, totals.arrivals),
            "staleness_max": totals.staleness_max,
            "inclusion_rate": totals.inclusion,
            "failures": [vars(failure) for failure in totals.failures],
        }


@dataclass
class _Totals:
    """Sums over the updates of one fit, so that a long fit needs no more memory than a short one."""

    setup_at: float = field(default_factory=time.monotonic)
    last_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    parameters: int = 0
    updates: int = 0
    samples: int = 0
    update_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    uploads: int = 0
    arrivals: int = 0
    late: int = 0
    dropped: int = 0
    resyncs: int = 0
    decoded_share: float = 0.0
    staleness: int = 0
    staleness_max: int = 0
    inclusion: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, update: Update, now: float) -> float:
        """Add an update that was applied at ``now``; returns its wall time in seconds."""
        update_s, self.last_at = now - self.last_at, now
        if self.first_at is None:
            self.first_at = now
        staleness = [arrival.staleness for arrival in update.arrivals]
        self.updates += 1
        self.samples += update.samples
        self.update_s += update_s
        self.wait_s += update.wait_s
        self.compute_s += update.compute_s
        self.bytes_up += update.bytes_up
        self.bytes_down += update.bytes_down
        self.uploads += update.uploads
        self.arrivals += len(staleness)
        self.late += sum(value > 0 for value in staleness)
        self.dropped += update.dropped
        self.resyncs += update.resyncs
        self.decoded_share += update.decoded_share
        self.staleness += sum(staleness)
        self.staleness_max = max(self.staleness_max, *staleness)
        self.inclusion = update.inclusion
        return update_s
