"""Where a run is now, for whoever continues it; ModelCheckpoint's is the last improvement.

`checkpoints/last.ckpt` is of its validations and its end, `recent.ckpt` and `recent_before.ckpt` of moments between.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

# Training waits for the copy, and where senders remember codewords for workers' word: a twentieth of its time at most.
_PAUSE = 20

LAST, RECENT, BEFORE = "last.ckpt", "recent.ckpt", "recent_before.ckpt"


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
            _rename(unfinished, self.path)
        self.saved = trainer.global_step


class RecentCheckpoints(Checkpoint):
    """Keeps the last two states of every few seconds, in mid-epoch too, so that a run that is killed loses no more.

    Training waits for a copy of the state in memory; writing it is a thread's, and where that takes long, the next one
    is as much later. At any moment one of the two files is whole. An epoch's end, and where a validation is due, is
    left out: a run that goes on there would leave out the validation, after which `LastCheckpoint` keeps one.

    Args:
        dirpath: folder of both.
        every_s: seconds from the end of one to the beginning of the next, and 20 times as many at least as training
            waited for the last; 0: after each update.

    Raises:
        ValueError: `every_s` is negative.
    """

    on_workers = False

    def __init__(self, dirpath: str, every_s: float) -> None:
        if every_s < 0:
            raise ValueError(f"callbacks.recent.every_s={every_s} is negative: use seconds, or callbacks.recent=null.")
        self._path = Path(dirpath) / RECENT
        self._writer = _Writer(self._path.with_name(BEFORE), every_s)
        self._io = AsyncCheckpointIO(self._writer)
        self._updates = 0
        self._saves = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count seconds from here."""
        self._saves = trainer.is_global_zero
        self._updates = trainer.global_step
        self._writer.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state where it is time, between two updates."""
        updates, self._updates = self._updates, trainer.global_step
        if not self._saves or not self._writer.due:
            return
        if trainer.global_step == updates:  # an update of several batches is not whole before
            return
        validated_every = trainer.val_check_batch  # None: validation is due by the clock
        if trainer.is_last_batch or (validated_every is not None and (batch_idx + 1) % validated_every == 0):
            return
        if trainer.global_step == trainer.max_steps:
            return  # LastCheckpoint's
        self._writer.ended_s, started = float("inf"), time.monotonic()
        strategy = trainer.strategy
        strategys, strategy.checkpoint_io = strategy.checkpoint_io, self._io
        # Where all ranks train as rank 0 does they would meet here, and only rank 0's clock says when.
        strategy.barrier = lambda name=None: None  # type: ignore[method-assign]
        try:
            trainer.save_checkpoint(self._path, weights_only=False)
        finally:
            strategy.checkpoint_io = strategys
            del strategy.barrier
            self._writer.waited_s = time.monotonic() - started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until what was begun is written; raises what kept it from being."""
        self._io.teardown()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait too: what is there may be all that is left."""
        self._io.teardown()


class _Writer(TorchCheckpointIO):
    """Writes a checkpoint beside the one before it, which keeps another name.

    Attributes:
        ended_s: when the last one was written, by the monotonic clock; infinite while one is.
        waited_s: seconds that training has waited for it.
    """

    def __init__(self, before: Path, every_s: float) -> None:
        self._before, self._every_s = before, every_s
        self.ended_s = self.waited_s = 0.0

    @property
    def due(self) -> bool:
        pause_s = max(self._every_s, _PAUSE * self.waited_s) if self._every_s else 0.0
        return time.monotonic() >= self.ended_s + pause_s

    def begin(self) -> None:
        self.ended_s = time.monotonic()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        torch.save(checkpoint, unfinished)
        if path.exists():
            os.replace(path, self._before)
        _rename(unfinished, path)
        self.begin()


def _rename(unfinished: Path, path: Path) -> None:
    """Give a file its name once it is on the disk, so that what has the name is whole even after a power cut."""
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(path.parent)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
