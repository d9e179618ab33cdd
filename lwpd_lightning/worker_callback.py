"""A callback around every codeword, on whichever rank it is computed."""

from __future__ import annotations

import lightning.pytorch as pl


class WorkerCallback(pl.Callback):
    """A callback that also runs in worker processes, around every codeword that they compute."""

    def on_codeword_start(self, trainer: pl.Trainer, worker: int, version: int) -> None:
        """Called before ``worker`` computes its codeword of ``version``."""

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Called when the codeword is computed, ``compute_s`` seconds after its start, before it is sent."""

    def stays_dead(self, worker: int) -> bool:
        """Asked by who started ``worker``: whether nothing is to be started in its place when it is lost."""
        return False


def stays_dead(trainer: pl.Trainer, worker: int) -> bool:
    """Whether one of the trainer's callbacks wants ``worker`` to stay dead."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, WorkerCallback) and callback.stays_dead(worker) for callback in callbacks)
