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
