"""What a run says while it runs, for `experiments.watch`: its log at once, and in `live.json` where it is."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from .identity import identity
from .stopping import told_by

LIVE = "live.json"
_SHARE = 0.02  # of a run's time, at most


class Live(Callback):
    """Writes every few seconds what the CSV log holds back, and how far the run is, who was lost and why.

    `live.json` has the updates made, those that the fit is to make (null: no end is known), the moment (seconds since
    1970), the strategy's `failures`, how the fit ended (null: it has not), and which process says so.

    Args:
        directory: the run's.
        every_s: seconds from one word to the next; more where that would take more than 2 % of the time.
    """

    on_workers = False

    def __init__(self, directory: str, every_s: float = 1.0) -> None:
        self._path = Path(directory) / LIVE
        self._every_s = every_s
        self._due_s = 0.0
        self._total: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it begins."""
        total = trainer.estimated_stepping_batches
        self._total = None if math.isinf(total) else int(total)
        self._tell(trainer, None)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Say it where it is time."""
        if time.monotonic() >= self._due_s:
            self._tell(trainer, None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._tell(trainer, None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that all updates are made."""
        self._tell(trainer, "trained")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what ended it."""
        self._tell(trainer, told_by(exception) or f"{type(exception).__name__}: {exception}".removesuffix(": "))

    def _tell(self, trainer: Trainer, ended: str | None) -> None:
        if not trainer.is_global_zero:
            return
        began = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        document = {
            "updates": trainer.global_step,
            "total": self._total,
            "at": time.time(),
            "failures": [vars(failure) for failure in getattr(trainer.strategy, "failures", [])],
            "ended": ended,
            "process": identity(os.getpid()),
        }
        unfinished = self._path.with_name(f".{LIVE}")
        unfinished.write_text(json.dumps(document), encoding="utf-8")
        os.replace(unfinished, self._path)  # a reader finds the whole file
        now = time.monotonic()
        self._due_s = now + max(self._every_s, (now - began) / _SHARE)
