"""A worker's side of Lightning's training loop: the hooks run where training_step runs, at its epochs and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden

from lwpd_lightning.links.header import NO_BATCH

if TYPE_CHECKING:
    from lwpd_lightning.exchange.follower import Assignment
    from lwpd_lightning.step_log import StepLog

# What these do for a run (files, bars, stopping, tuning, averages for validation) rank 0 does for all.
_RANK_ZERO_ONLY = tuple(
    getattr(callbacks, name)
    for name in (
        "BasePredictionWriter",
        "BatchSizeFinder",
        "Checkpoint",
        "DeviceStatsMonitor",
        "EarlyStopping",
        "LearningRateFinder",
        "LearningRateMonitor",
        "ModelSummary",
        "ProgressBar",
        "SpikeDetection",
        "StochasticWeightAveraging",
        "ThroughputMonitor",
        "Timer",
        "WeightAveraging",
    )
    if hasattr(callbacks, name)  # some are newer than the oldest Lightning that will do
)


def acts_on_workers(callback: pl.Callback) -> bool:
    """Whether a callback's training hooks run on every rank, as under DDP, or on rank 0 alone.

    Lightning's callbacks that write, show or stop act on rank 0 alone, and any callback with an attribute
    ``on_workers = False``. Others act everywhere; what only rank 0 should do in them stands, as under DDP, behind
    ``trainer.is_global_zero`` or ``@rank_zero_only``.
    """
    return bool(getattr(callback, "on_workers", not isinstance(callback, _RANK_ZERO_ONLY)))


class TrainingHooks:
    """Calls the training hooks of the module and of those callbacks that act on workers.

    Lightning's loop calls them on rank 0. A worker runs an epoch's hooks for every epoch that training passes, a step's
    for every step that it makes, and a batch's for the batches that it computes: of one that it skips it has no data.

    Args:
        trainer: the trainer, whose callbacks are from now on those that act on workers.
        step_log: takes what is logged.
        at: the epoch and batch whose start this process has gone through as rank 0, which it was; None: none.

    Attributes:
        reload: called at the start of every epoch but the first, before its hook; None: nothing is.
    """

    def __init__(self, trainer: pl.Trainer, step_log: StepLog, at: tuple[int, int] | None = None) -> None:
        self._trainer, self._step_log = trainer, step_log
        trainer.callbacks = [c for c in trainer.callbacks if acts_on_workers(c)]  # type: ignore[attr-defined]
        self.reload: Callable[[int], None] | None = None
        self._loop = trainer.fit_loop
        self._progress: Any = trainer.fit_loop.epoch_progress.current
        self._epoch = at[0] if at is not None else None  # whose start has been told
        self._started = at  # the batch whose start has been told
        self._computed: tuple[Any, Any, int] | None = None  # output, batch and index of one whose end has not
        self._stepped = False  # since it was computed
        self._module = trainer.lightning_module
        self._overridden: dict[str, bool] = {}

    def enter(self, assignment: Assignment, validate: Callable[[], None] | None = None) -> None:
        """Training has come to an epoch and a batch: end what went before, validate if told so, start what comes."""
        if self._computed is not None and self._stepped:
            self._call("on_train_batch_end", *self._computed)
        self._computed, self._stepped = None, False
        if validate is not None:
            validate()
        if assignment.batch_index == NO_BATCH:
            self._count(self._epoch or 0, None, assignment.global_step)
            return
        if self._epoch is None:
            self._epoch = assignment.epoch
            self._count(self._epoch, None, assignment.global_step)
            if not (self._loop.restarted_mid_epoch or self._loop.restarted_on_epoch_end):
                self._start_epoch()
        while self._epoch < assignment.epoch:
            self._end_epoch()
            self._epoch += 1
            self._count(self._epoch, None, assignment.global_step)
            if self.reload is not None:
                self.reload(self._epoch)
            self._start_epoch()
        self._count(self._epoch, assignment.batch_index, assignment.global_step)

    def batches(self, assignment: Assignment) -> range:
        """The batches that an update is accumulated over: on an epoch's last one Lightning steps in any case."""
        first, every = assignment.batch_index, self._trainer.accumulate_grad_batches
        return range(first, int(min(first - first % every + every, self._trainer.num_training_batches)))

    def start_batch(self, batch: Any, epoch: int, index: int, *, last: bool) -> bool:
        """Start a batch, the ``last`` of its epoch or not; whether it is to be computed."""
        self._loop.epoch_loop.batch_progress.is_last_batch = last
        if self._started == (epoch, index):
            return True
        self._started = epoch, index
        return bool(self._call("on_train_batch_start", batch, index) != -1)

    def computed(self, batch: Any, index: int, output: Any) -> None:
        """A batch's first data part has been computed: what its end will be told."""
        every = self._trainer.accumulate_grad_batches
        result = ClosureResult.from_training_step_output(output, every)
        self._computed = result.asdict(), batch, index
        if index % every == 0:
            self.before_zero_grad()

    def accumulate(self, index: int) -> None:
        """Go on to another batch of the same update."""
        assert self._computed is not None
        self._call("on_after_backward")
        self._call("on_train_batch_end", *self._computed)
        self._computed = None
        self._loop.epoch_loop.batch_progress.current.ready = index + 1

    def before_zero_grad(self) -> None:
        """What Lightning does between the forward and the backward of a batch's first data part."""
        self._call("on_before_zero_grad", self._trainer.optimizers[0])

    def step(self, at: Assignment) -> None:
        """All that Lightning does between a backward and the next batch, with the gradients that lie in ``.grad``."""
        trainer = self._trainer
        self._stepped = True
        index = self._computed[2] if self._computed is not None else self.batches(at)[-1]
        self._count(at.epoch, index, at.global_step)
        self._call("on_after_backward")
        loss = self._computed[0].get("loss") if self._computed is not None else None
        call._call_lightning_module_hook(
            trainer,
            "optimizer_step",
            at.epoch,
            index,
            trainer.strategy._lightning_optimizers[0],
            lambda: loss if loss is not None else torch.zeros((), device=self._module.device),
        )
        self._loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = at.global_step + 1

    def finish(self, end: Assignment) -> None:
        """Training has ended: the last epoch does, and Lightning's loop finds itself where rank 0's is."""
        self.enter(end)
        if self._epoch is not None:
            self._end_epoch()
        progress = self._progress
        progress.ready = progress.started = progress.processed = progress.completed = end.epoch

    def _start_epoch(self) -> None:
        self._call("on_train_epoch_start")

    def _end_epoch(self) -> None:
        self._progress.processed += 1
        self._call("on_train_epoch_end")
        self._step_log.end_epoch()

    def _count(self, epoch: int, batch_index: int | None, global_step: int) -> None:
        """Let ``current_epoch``, ``global_step`` and the rest be what they are on rank 0."""
        progress, batches = self._progress, self._loop.epoch_loop.batch_progress
        progress.ready = progress.started = epoch + 1
        progress.processed = progress.completed = epoch
        if batch_index is not None:
            batches.current.ready = batch_index + 1
        self._loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = global_step

    def _call(self, hook: str, *arguments: Any) -> Any:
        """The callbacks' hook, then the module's, whose answer is returned."""
        if not self._is_overridden(hook):
            return None
        call._call_callback_hooks(self._trainer, hook, *arguments)
        return call._call_lightning_module_hook(self._trainer, hook, *arguments)

    def _is_overridden(self, hook: str) -> bool:
        if hook not in self._overridden:
            acting: list[pl.Callback] = self._trainer.callbacks  # type: ignore[attr-defined]
            self._overridden[hook] = is_overridden(hook, self._module, pl.LightningModule) or any(
                is_overridden(hook, callback, pl.Callback) for callback in acting
            )
        return self._overridden[hook]
