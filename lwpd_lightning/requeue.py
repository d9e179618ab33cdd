"""Slurm's signal that a job's time is over: rank 0 alone answers it, between two updates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment


class Requeue(pl.Callback):
    """Lets Lightning save and requeue where the state is whole, and not wherever the signal finds rank 0.

    Lightning saves at once, which may be between an optimizer's step and its being counted: the batch would be made
    twice. Here an update is finished first, and a validation that is due after it.

    Args:
        trainer: of rank 0.
    """

    on_workers = False

    def __init__(self, trainer: pl.Trainer) -> None:
        self._requeue = trainer._signal_connector._slurm_sigusr_handler_fn
        self._process = os.getpid()
        self._training = False
        self._told: tuple[int, Any] | None = None

    def on_signal(self, signum: int, frame: Any) -> None:
        """Save and requeue now, or after the update under way."""
        if os.getpid() != self._process:  # Slurm signals a task's children too, as processes of a DataLoader
            return
        self._told = signum, frame
        if not self._training:
            self._act()

    def _act(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            self._requeue(*told)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on an update may be under way."""
        self._training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act between two updates of an epoch.

        From its end a run would go on without its validation, or, where there is none, with one batch too many of that
        epoch (Lightning 2.6): the next update is as good.
        """
        every = trainer.val_check_batch  # None: validation is due by the clock
        ends = trainer.is_last_batch and trainer.num_training_batches > 1
        validates = trainer.enable_validation and every is not None and (batch_idx + 1) % every == 0
        if not ends and not validates and not trainer.fit_loop._should_accumulate():
            self._act()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No update is under way."""
        self._training = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Act where one was when the signal came."""
        self._act()
        self._training = not trainer.sanity_checking

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is trained to its end is not requeued."""
        self._training, self._told = False, None


def requeue_between_updates(trainer: pl.Trainer, environment: ClusterEnvironment) -> None:
    """Before Lightning sets its handlers: on rank 0 its requeueing waits for `Requeue`, elsewhere there is none."""
    if not isinstance(environment, SLURMEnvironment):
        return
    connector: Any = trainer._signal_connector
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if not trainer.is_global_zero:
        connector._slurm_sigusr_handler_fn = _ignored
    elif not any(isinstance(callback, Requeue) for callback in callbacks):
        requeue = Requeue(trainer)
        callbacks.append(requeue)
        connector._slurm_sigusr_handler_fn = requeue.on_signal


def _ignored(signum: int, frame: Any) -> None:
    """Rank 0's to answer."""
