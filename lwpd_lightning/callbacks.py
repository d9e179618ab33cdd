"""Callbacks around the exchange: what is logged of it, and injected stragglers and faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

if TYPE_CHECKING:
    from lwpd_lightning.exchange.coordinator import Failure, Update


class WorkerCallback(pl.Callback):
    """A callback that also runs in worker processes, around every codeword that they compute."""

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Called before ``worker`` computes its codeword of ``version``."""

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Called when the codeword is computed, ``compute_s`` seconds after its start, before it is sent."""


class StragglerInjector(WorkerCallback):
    """Makes chosen workers slow: the codeword is computed, then held back.

    Args:
        delays: worker -> extra seconds for every codeword.
        slowdown: worker -> factor (>= 1) on its computing time.

    Raises:
        ValueError: for a negative delay or a factor below 1.
    """

    def __init__(self, delays: Mapping[int, float] | None = None, slowdown: Mapping[int, float] | None = None) -> None:
        self._delays, self._slowdown = dict(delays or {}), dict(slowdown or {})
        for worker, seconds in self._delays.items():
            if seconds < 0:
                raise ValueError(f"delays[{worker}]={seconds} is negative: use seconds >= 0.")
        for worker, factor in self._slowdown.items():
            if factor < 1:
                raise ValueError(f"slowdown[{worker}]={factor} would be faster than real: use a factor >= 1.")

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Sleep as long as this worker is late."""
        time.sleep(self._delays.get(worker, 0.0) + (self._slowdown.get(worker, 1.0) - 1.0) * compute_s)


class FaultInjector(WorkerCallback):
    """Kills chosen workers (SIGKILL) when they are about to compute a version.

    Args:
        kills: worker -> the first version (update) that it does not live to compute.
    """

    def __init__(self, kills: Mapping[int, int]) -> None:
        self._kills = dict(kills)

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Die where it is this worker's turn; rank 0 lives, since nothing survives its coordinator."""
        if version >= self._kills.get(worker, version + 1) and not trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)


class ExchangeMonitor(pl.Callback):
    """Logs every update of the exchange to all of the trainer's loggers, and sums the fit up.

    Logged at every update, whatever ``log_every_n_steps`` says: ``exchange/loss`` (mean over contributors), ``lr``,
    ``wait_s``, ``compute_s``, ``update_s``, ``bytes_up``, ``bytes_down``, ``arrivals``, ``dropped``, ``live``,
    ``decoded_share`` (of the k task directions), ``staleness_mean``, and for each worker ``arrived/i`` (0 or 1),
    ``staleness/i`` (versions, NaN where it did not arrive) and ``inclusion/i`` (share of updates so far).
    """

    def __init__(self) -> None:
        self._updates: list[Update] = []
        self._failures: list[Failure] = []
        self._update_s: list[float] = []
        self._setup_at = time.monotonic()
        self._last_at = 0.0
        self._first_update_at: float | None = None
        self._parameters = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock of ``startup_s``."""
        if stage == "fit":
            self.__init__()  # type: ignore[misc]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the first update."""
        self._parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self._last_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the update that has just been applied."""
        update: Update | None = getattr(trainer.strategy, "last_update", None)
        if update is None or (self._updates and self._updates[-1] is update):
            return
        now = time.monotonic()
        if self._first_update_at is None:
            self._first_update_at = now
        self._updates.append(update)
        self._update_s.append(now - self._last_at)
        self._failures = list(trainer.strategy.failures)  # type: ignore[attr-defined]
        self._last_at = now
        metrics = self._series(update)
        metrics["exchange/update_s"] = self._update_s[-1]
        metrics["exchange/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the last failures."""
        self._failures = list(getattr(trainer.strategy, "failures", []))

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
            "exchange/dropped": update.dropped,
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
        """The fit in figures: counts, bytes over all links, seconds, staleness in versions, and who was lost."""
        updates = self._updates
        staleness = [arrival.staleness for update in updates for arrival in update.arrivals]
        uploads = sum(sum(a.worker != 0 for a in u.arrivals) + u.dropped for u in updates)

        def mean(values: list[float]) -> float:
            return float(torch.tensor(values, dtype=torch.float64).mean()) if values else 0.0

        return {
            "parameters": self._parameters,
            "updates": len(updates),
            "samples": sum(update.samples for update in updates),
            "startup_s": (self._first_update_at or time.monotonic()) - self._setup_at,
            "fit_s": self._last_at - self._setup_at,
            "update_s_mean": mean(self._update_s),
            "wait_s_mean": mean([update.wait_s for update in updates]),
            "compute_s_mean": mean([update.compute_s for update in updates]),
            "bytes_up": sum(update.bytes_up for update in updates),
            "bytes_down": sum(update.bytes_down for update in updates),
            "bytes_up_per_update_per_worker": sum(u.bytes_up for u in updates) / uploads if uploads else 0.0,
            "arrivals_mean": mean([float(len(update.arrivals)) for update in updates]),
            "late_codewords": sum(value > 0 for value in staleness),
            "dropped_codewords": sum(update.dropped for update in updates),
            "decoded_share_mean": mean([update.decoded_share for update in updates]),
            "staleness_mean": mean([float(value) for value in staleness]),
            "staleness_max": max(staleness, default=0),
            "inclusion_rate": updates[-1].inclusion if updates else [],
            "failures": [vars(failure) for failure in self._failures],
        }
