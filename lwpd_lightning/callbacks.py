"""The callback that logs the exchange."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

if TYPE_CHECKING:
    from lwpd_lightning.exchange.update import Failure, Update


class ExchangeMonitor(pl.Callback):
    """Logs every update of the exchange to all of the trainer's loggers, and sums the fit up.

    Logged at every update, whatever ``log_every_n_steps`` says: ``exchange/loss`` (mean over contributors), ``lr``,
    ``wait_s``, ``compute_s``, ``update_s``, ``bytes_up``, ``bytes_down``, ``wait_for`` (K), ``arrivals``, ``dropped``,
    ``refused`` (codewords that are not finite), ``resyncs`` (workers that took over rank 0's state), ``live``,
    ``decoded_share`` (of the k task directions), ``staleness_mean``, and for each worker ``arrived/i`` (0 or 1),
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
            "exchange/refused": len(update.refused),
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
            "refused_codewords": totals.refused,
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
    refused: int = 0
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
        self.refused += len(update.refused)
        self.resyncs += update.resyncs
        self.decoded_share += update.decoded_share
        self.staleness += sum(staleness)
        self.staleness_max = max(self.staleness_max, *staleness)
        self.inclusion = update.inclusion
        return update_s
