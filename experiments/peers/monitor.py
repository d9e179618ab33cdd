"""What all-reduces cost, logged and summed up under the names that coded exchange uses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from .strategy import DDPPeer


def ring_bytes(payload_bytes: int, ranks: int) -> float:
    """Bytes that each rank sends, and receives, in ring all-reduces of a payload: 2 (n - 1) / n of it.

    Gloo's all-reduce is a ring: n - 1 steps that add shares of 1/n up, and n - 1 that hand the sums on (Patarasuk &
    Yuan, 2009). Message headers are not counted.

    >>> ring_bytes(4000, ranks=8)
    7000.0
    """
    return 2 * (ranks - 1) * payload_bytes / ranks


@dataclass
class _Totals:
    """Sums over the updates of one fit; times by ``time.perf_counter``."""

    started_at: float = 0.0
    last_at: float = field(default_factory=time.perf_counter)
    first_at: float | None = None
    ranks: int = 1
    updates: int = 0
    update_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0
    payload_bytes: int = 0
    wire_bytes: int = 0


class AllReduceMonitor(pl.Callback):
    """Logs every update of a `DDPPeer` to all of the trainer's loggers, and sums the fit up; on rank 0.

    Logged at every update: ``exchange/compute_s`` and ``exchange/wait_s`` (rank 0's), ``exchange/update_s``,
    ``exchange/lr``, and ``exchange/bytes_up`` and ``exchange/bytes_down``, which are what all ranks together send and
    receive in a ring all-reduce of what they handed over.
    """

    def __init__(self) -> None:
        self._totals = _Totals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new fit: forget the last one, and start the clock of the first update."""
        assert isinstance(trainer.strategy, DDPPeer)
        self._totals = _Totals(started_at=trainer.strategy.started_at, ranks=trainer.world_size)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the update that has just been applied."""
        assert isinstance(trainer.strategy, DDPPeer)
        update, totals, now = trainer.strategy.last_step, self._totals, time.perf_counter()
        if update is None or not trainer.is_global_zero:
            return
        update_s, totals.last_at = now - totals.last_at, now
        totals.first_at = totals.first_at or now
        wire_bytes = round(totals.ranks * ring_bytes(update.payload_bytes, totals.ranks))
        totals.updates += 1
        totals.update_s += update_s
        totals.wait_s += update.wait_s
        totals.compute_s += update.compute_s
        totals.payload_bytes += update.payload_bytes
        totals.wire_bytes += wire_bytes
        metrics = {
            "exchange/update_s": update_s,
            "exchange/wait_s": update.wait_s,
            "exchange/compute_s": update.compute_s,
            "exchange/bytes_up": wire_bytes,
            "exchange/bytes_down": wire_bytes,
            "exchange/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def summary(self) -> dict[str, Any]:
        """The last fit in figures: seconds of rank 0, bytes of all ranks, and the payload of one rank and update."""
        totals, updates = self._totals, max(1, self._totals.updates)
        first_at = totals.first_at if totals.first_at is not None else totals.last_at
        return {
            "startup_s": first_at - totals.started_at,
            "fit_s": totals.last_at - totals.started_at,
            "update_s_mean": totals.update_s / updates,
            "wait_s_mean": totals.wait_s / updates,
            "compute_s_mean": totals.compute_s / updates,
            "bytes_up": totals.wire_bytes,
            "bytes_down": totals.wire_bytes,
            "bytes_up_per_update_per_worker": totals.wire_bytes / updates / totals.ranks,
            "payload_bytes_per_update": totals.payload_bytes / updates,
        }
