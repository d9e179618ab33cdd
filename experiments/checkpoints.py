"""`checkpoints/last.ckpt`: where a run is now, for whoever continues it; ModelCheckpoint's is the last improvement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

LAST = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps the state at every validation, at the end of the run, and where a signal stopped it between two updates.

    Args:
        dirpath: folder of `last.ckpt`, which is the whole one before or the whole new one at any moment.

    Attributes:
        path: of `last.ckpt`.
        saved: how many updates it holds; None before it was written.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / LAST
        self.saved: int | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save after `max_steps`: at the fit's end Lightning takes the epoch that it broke off for a whole one."""
        if trainer.global_step == trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save within the fit, also where the validation of its last update was still to come."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what no validation did."""
        if trainer.global_step != self.saved:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where Lightning stopped for a signal: everywhere else the update under way may be half made."""
        if isinstance(exception, SIGTERMException) and trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        unfinished = self.path.with_name(f".{LAST}")  # beside it: only within a file system is a renaming atomic
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        self.saved = trainer.global_step
