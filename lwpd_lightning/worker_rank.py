"""A worker process' side of a fit: find rank 0, then answer every version with a codeword until told to stop."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

from lwpd_lightning.coding import BlockMap
from lwpd_lightning.data import CodedLoader, following
from lwpd_lightning.exchange.mesh import WorkerLinks
from lwpd_lightning.exchange.rendezvous import Rendezvous
from lwpd_lightning.exchange.update import Codeword, Contribution
from lwpd_lightning.exchange.worker import Assignment, Worker
from lwpd_lightning.launcher import Workers, job_command, watch_parent
from lwpd_lightning.meeting import (
    ENV_FIT,
    ENV_PARENT,
    Meeting,
    computation,
    error_feedback,
    fingerprint,
    max_message_bytes,
    queued,
    reduction,
)
from lwpd_lightning.settings import ExchangeSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl


_fits: Counter[tuple[str, ...]] = Counter()


def next_generation() -> int:
    """Count the fits of this job in this process, whatever trainer they belong to: every rank counts the same."""
    job = tuple(job_command()[0])
    _fits[job] += 1
    return _fits[job] - 1


def serve(trainer: pl.Trainer, settings: ExchangeSettings, meeting: Meeting, worker: int, loader: CodedLoader) -> None:
    """Be worker ``worker`` of the fit until it ends; raises what its training_step raised."""
    code = settings.code
    assert code is not None
    module, optimizer = trainer.lightning_module, trainer.strategy.optimizers[0]
    try:
        store = Rendezvous.join(meeting.host, meeting.port, meeting.generation, settings.timeout_s)
        address, seed = store.coordinator()
        blocks = BlockMap(module.parameters(), code.blocks)
        loader = loader.for_worker(code.parts(worker), seed)
        feedback = error_feedback(settings, worker, blocks)
        codewords = computation(trainer, settings, meeting, worker, blocks, feedback, seed)
        known = {worker, 0} if not settings.dedicated_coordinator else {worker}
        links = WorkerLinks(
            meeting.run_key,
            worker,
            address,
            peers=[other for other in range(code.n) if other not in known and meeting.memory is None],
            heartbeat_s=settings.heartbeat_s,
            max_message_bytes=max_message_bytes(module, blocks),
            queued=queued(blocks, settings),
        )
    except BaseException:
        traceback.print_exc()  # there is no link yet that could carry it to rank 0
        raise
    module.log = _log_nothing  # type: ignore[method-assign]

    def compute(assignment: Assignment) -> tuple[Codeword, Contribution] | None:
        nonlocal loader
        loader = following(trainer, loader, assignment.epoch)
        _take_position(trainer, assignment)
        if not loader.has(assignment.epoch, assignment.batch_index):
            return None
        batch = loader.batch(assignment.epoch, assignment.batch_index)
        codewords.begin(assignment.version)
        touched = codewords.add_parts(batch, codewords.parts)
        return codewords.finish(batch, touched)

    def step() -> None:
        trainer.precision_plugin._clip_gradients(
            module, optimizer, trainer.gradient_clip_val, gradient_clip_algorithm=trainer.gradient_clip_algorithm
        )
        optimizer.step()

    try:
        Worker(
            links=links,
            reduction=reduction(blocks, settings, meeting, worker, links.send, feedback, seed),
            model=module,
            optimizer=optimizer,
            step=step,
            messages=meeting.messages,
            fingerprint=fingerprint(module, blocks, code, loader),
            timeout_s=settings.timeout_s,
        ).run(compute)
    finally:
        loader.close()
        links.close()


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """Metrics of the training step are logged on rank 0 only."""


def _take_position(trainer: pl.Trainer, assignment: Assignment) -> None:
    """Let ``current_epoch`` and ``global_step`` in the user's training_step be those of the version."""
    loop = trainer.fit_loop
    loop.epoch_progress.current.completed = assignment.epoch
    loop.epoch_loop.batch_progress.current.ready = assignment.batch_index + 1
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = assignment.global_step


class WorkerRankLauncher(_Launcher):
    """Turns a process that was started as a worker off the script's path: into the worker loop at its fit, past
    everything else.

    The script of a worker process runs as rank 0's does until it reaches the fit that the worker was started for;
    there it serves, and the process ends. Earlier fits, and validate, test and predict, do nothing here. A worker that
    this package did not start (the first process of another machine, or all of them under torchrun or SLURM) serves
    every fit in turn and goes on; the first process of a machine starts the others there.
    """

    def __init__(
        self,
        begin: Callable[[int], tuple[ExchangeSettings, Meeting, int]],
        start_siblings: Callable[[int], Workers],
    ) -> None:
        self._begin, self._start_siblings = begin, start_siblings
        if ENV_PARENT in os.environ:
            watch_parent(int(os.environ[ENV_PARENT]))

    @property
    def is_interactive_compatible(self) -> bool:
        """A worker process has no user in front of it."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer, **kwargs: Any) -> Any:
        """Serve when ``function`` is the fit that this process was started for."""
        if trainer.state.fn is not TrainerFn.FITTING:
            return None
        generation = next_generation()
        if ENV_FIT not in os.environ:
            return self._serve(generation, trainer, *args, **kwargs)
        if generation != int(os.environ[ENV_FIT]):
            return None
        code = 0
        try:
            self._serve(generation, trainer, *args, **kwargs)
        except BaseException:
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def kill(self, signum: Any) -> None:
        """A worker started no processes."""

    def _serve(
        self,
        generation: int,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> None:
        """What Lightning does between ``fit`` and the first batch, as far as a worker needs it."""
        settings, meeting, worker = self._begin(generation)
        strategy = trainer.strategy
        trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
        trainer.state.stage = RunningStage.TRAINING
        Rendezvous.join(meeting.host, meeting.port, meeting.generation, settings.timeout_s).coordinator()
        strategy._lightning_module = model
        trainer._data_connector.attach_data(
            model, train_dataloaders=train_dataloaders, val_dataloaders=val_dataloaders, datamodule=datamodule
        )
        strategy.connect(model)
        strategy.setup_environment()
        trainer._data_connector.prepare_data()
        call._call_setup_hook(trainer)
        call._call_configure_model(trainer)
        strategy.model = strategy.precision_plugin.convert_module(model)
        strategy.model_to_device()
        strategy.setup_optimizers(trainer)
        call._call_lightning_module_hook(trainer, "on_fit_start")
        trainer.fit_loop.setup_data()
        call._call_lightning_module_hook(trainer, "on_train_start")
        loader = trainer.fit_loop._combined_loader.flattened[0]  # type: ignore[union-attr]
        siblings = self._start_siblings(generation)
        try:
            serve(trainer, settings, meeting, worker, loader)
        finally:
            siblings.end()
