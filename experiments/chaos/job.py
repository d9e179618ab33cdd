"""What every rank trains while faults befall it: an MLP on digits, with a plain Trainer, until it is told to end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lwpd_lightning import Code, LWPDStrategy, lwpd_code, uncoded
from lwpd_lightning.worker_callback import WorkerCallback

from ..data import Digits
from ..models.classifier import Classifier, mlp
from .log import Log

_BATCH = 120  # divisible by the data parts of up to six uncoded workers
_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        workers: n, rank 0's included.
        wait_for: K.
        heartbeat_s: after which a silent worker is an erasure.
        compute_s: how much longer a codeword takes than computing it does. A worker sleeps for it, so that few cores
            stand for many machines.
        updates: where rank 0 ends; None: where the file `wish` says.
        hosts: whether each rank is on a host of its own; else rank 0 forks the others.
    """

    workers: int
    wait_for: int
    heartbeat_s: float
    compute_s: float
    updates: int | None
    hosts: bool

    @property
    def code(self) -> Code:
        """The paper's where there is one of its kind for so many workers."""
        n = self.workers
        return lwpd_code(n, n // 2, 2) if n % 4 == 0 else uncoded(n)


def wish(directory: Path) -> Path:
    """The file that says at which update rank 0 ends."""
    return directory / "wish"


def flag(directory: Path, rank: int) -> Path:
    """The file that, once it is there, spoils the next gradient of a rank."""
    return directory / f"spoil-{rank}"


def train(settings: Settings, directory: Path, log: Log) -> None:
    """Be one rank of the run, as the environment says which."""
    pl.seed_everything(1, verbose=False)
    data = Digits(_BATCH - _BATCH % settings.code.data_parts)
    data.setup()
    model = _Spoilt(directory, log)
    strategy = LWPDStrategy(
        code=settings.code, wait_for=settings.wait_for, heartbeat_s=settings.heartbeat_s, timeout_s=_TIMEOUT_S
    )
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, max_steps=settings.updates or -1, max_epochs=-1,
        num_nodes=settings.workers if settings.hosts else 1, devices=1 if settings.hosts else settings.workers,
        callbacks=[_Recorder(directory, log), _Slow(settings.compute_s)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    if trainer.is_global_zero:
        log.write("trained", metric=_accuracy(model, data))


def _accuracy(model: pl.LightningModule, data: Digits) -> float:
    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in data.val_dataloader():
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


class _Spoilt(Classifier):
    """A classifier one of whose gradients is NaN where that is asked for."""

    def __init__(self, directory: Path, log: Log) -> None:
        optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        super().__init__(mlp([1, 8, 8], [256, 256], 10), 10, optimizer)
        self._directory, self._log = directory, log

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss, or what has no gradient."""
        loss = super().training_step(batch, batch_idx)
        asked = flag(self._directory, self.global_rank)
        if not asked.exists():
            return loss
        asked.unlink()
        self._log.write("spoilt", worker=self.global_rank)
        return loss * float("nan")


class _Recorder(pl.Callback):
    """Tells of every update, and of every worker that rank 0 gave up; ends the run where that is wished."""

    on_workers = False

    def __init__(self, directory: Path, log: Log) -> None:
        self._wish, self._log, self._told, self._end = wish(directory), log, 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """After an update."""
        strategy: Any = trainer.strategy
        for failure in strategy.failures[self._told :]:
            self._log.write("lost", **vars(failure))
        self._told = len(strategy.failures)
        update = strategy.last_update
        self._log.write(
            "update", update=trainer.global_step, version=update.version, live=update.live,
            arrived=sorted(arrival.worker for arrival in update.arrivals), refused=update.refused,
        )  # fmt: skip
        if not self._end and self._wish.exists():
            self._end = int(self._wish.read_text())
        if self._end:
            trainer.should_stop = trainer.global_step >= self._end


class _Slow(WorkerCallback):
    """Each codeword takes a while, which is slept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_codeword_end(self, trainer: pl.Trainer, worker: int, version: int, compute_s: float) -> None:
        """Before it is sent."""
        time.sleep(self._seconds)


def become(settings: Settings, directory: Path, log: Log, rank: int) -> None:
    """`train`, in a process of its own, whose output goes to a file."""
    output = os.open(directory / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    train(settings, directory, log)
