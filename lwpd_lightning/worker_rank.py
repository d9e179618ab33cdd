"""A worker's side of a fit: find rank 0, then answer every version with a codeword until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lwpd_lightning.compute import CodewordComputation
from lwpd_lightning.data import CodedBatch, CodedLoader, following
from lwpd_lightning.entries import adopt, entries, outcome_of
from lwpd_lightning.exchange.follower import Assignment
from lwpd_lightning.exchange.state import Structure
from lwpd_lightning.exchange.update import Contribution
from lwpd_lightning.exchange.worker import Worker
from lwpd_lightning.hooks import TrainingHooks
from lwpd_lightning.launcher import watch_parent
from lwpd_lightning.links.header import NO_BATCH
from lwpd_lightning.links.mesh import ToldToEnd, WorkerLinks
from lwpd_lightning.links.rendezvous import Rendezvous
from lwpd_lightning.loss_scale import scale_gradients
from lwpd_lightning.meeting import ENV_FIT, ENV_PARENT, Meeting
from lwpd_lightning.reduction.reduction import Codeword
from lwpd_lightning.reduction.sums import SharedMemory
from lwpd_lightning.rule.outage import DataSourceFailed
from lwpd_lightning.seat import Seat
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.steering import steer
from lwpd_lightning.step_log import StepLog

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


class TrainedReplica:
    """The trainer's model on a worker: Lightning's hooks, its data parts, its optimizer.

    Args:
        trainer: the trainer.
        loader: its training loader, with this worker's data parts.
        codewords: computes them.
        hooks: the training hooks.
        step_log: takes what training_step logs.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        loader: CodedLoader,
        codewords: CodewordComputation,
        hooks: TrainingHooks,
        step_log: StepLog,
    ) -> None:
        self._trainer, self._loader, self._codewords = trainer, loader, codewords
        self._structure = Structure(trainer.lightning_module)
        hooks.reload = self._reload
        self._hooks, self._step_log = hooks, step_log
        self._step_s = 0.0  # since the last codeword

    def enter(self, assignment: Assignment, validate: Callable[[], None] | None = None) -> None:
        """Run the hooks between two batches."""
        self._hooks.enter(assignment, validate)

    def validated(self) -> Tensor | None:
        """What this rank's share of validation comes to; rank 0 does that of a rank which cannot read its data."""
        strategy: Any = self._trainer.strategy
        try:
            share: Tensor = strategy.validation.compute(strategy.global_rank)
            return share
        except OSError as error:
            log.warning("Rank 0 validates this rank's share: %s: %s", type(error).__name__, error)
            return None

    def compute(self, assignment: Assignment, settle: Callable[[], None]) -> tuple[Codeword, Contribution] | None:
        """Fetch the batches of an update, one where none are accumulated, and compute its codeword.

        None where a hook leaves a batch out or an epoch has none, as rank 0 will find too, or where what is trained has
        changed, upon which it will end the exchange.
        """
        started, touched, samples = time.monotonic(), set[int](), 0
        first, *rest = self._codewords.parts
        for index in self._hooks.batches(assignment):
            if not self._loader.has(assignment.epoch, index):
                break
            if index != assignment.batch_index:
                self._hooks.accumulate(index)
            batch = self._read(assignment.epoch, index)
            data = self._codewords.transferred(batch, first)
            last = index + 1 >= self._trainer.num_training_batches or not self._loader.has(assignment.epoch, index + 1)
            if not self._hooks.start_batch(data, assignment.epoch, index, last=last) or self.changed:
                return None
            if index == assignment.batch_index:
                settle()
                self._codewords.begin(assignment.version, time.monotonic() - started + self._step_s)
            self._codewords.add_part(batch, first, data, touched, partial(self._hooks.computed, data, index))
            touched |= self._codewords.add_parts(batch, tuple(rest))
            samples += batch.part_samples
        if not samples:
            return None
        self._step_s = 0.0
        return self._codewords.finish(samples, touched, self._step_log.take())

    def _read(self, epoch: int, index: int) -> CodedBatch:
        try:
            return self._loader.batch(epoch, index)
        except OSError as error:
            raise DataSourceFailed(f"{type(error).__name__}: {error}") from error

    @property
    def changed(self) -> bool:
        """Whether something else is to be trained than when the exchange began."""
        return self._structure.changed

    def close(self) -> None:
        """End what fetches ahead."""
        self._loader.close()

    def _reload(self, epoch: int) -> None:
        self._loader = following(self._trainer, self._loader, epoch)

    def skip(self, at: Assignment) -> None:
        """The batch has been computed by others alone."""
        self._hooks.before_zero_grad()

    def step(self, at: Assignment) -> None:
        """Step as rank 0 does, with the hooks around it."""
        started = time.monotonic()
        scale_gradients(self._trainer.precision_plugin, self._codewords.blocks.parameters)
        self._hooks.step(at)
        self._step_s += time.monotonic() - started

    def steer(self, attributes: dict[str, object]) -> None:
        """Set what validation on rank 0 has changed."""
        steer(self._trainer.lightning_module, attributes)


def serve(trainer: pl.Trainer, settings: ExchangeSettings, meeting: Meeting, worker: int, loader: CodedLoader) -> None:
    """Be worker ``worker`` of the fit until it ends; raises what its training_step raised."""
    step_log = StepLog(trainer.lightning_module, everything=settings.dedicated_coordinator, keep=False)
    hooks = TrainingHooks(trainer, step_log)
    store = meeting.store(settings.timeout_s)
    meeting = replace(meeting, segment=store.newest)
    while True:
        end = _serve(trainer, settings, meeting, store, None, worker, loader, hooks, step_log)
        if end.batch_index == NO_BATCH:
            break
        hooks.enter(end)
        meeting = replace(meeting, segment=meeting.segment + 1)
    hooks.finish(end)


def _serve(
    trainer: pl.Trainer,
    settings: ExchangeSettings,
    meeting: Meeting,
    store: Rendezvous,
    memory: SharedMemory | None,
    worker: int,
    loader: CodedLoader,
    hooks: TrainingHooks,
    step_log: StepLog,
) -> Assignment:
    """Be a worker until the exchange ends; returns where the next one begins."""
    code = settings.code
    assert code is not None
    module = trainer.lightning_module
    address, seed = store.coordinator(meeting.segment)
    loader = loader.for_worker(code.parts(worker), seed)
    seat = Seat(settings, meeting, worker, module, trainer.optimizers[0], loader, memory)
    codewords = seat.computation(trainer)
    assert codewords is not None
    links = WorkerLinks(
        meeting.run_key,
        worker,
        address,
        peers=seat.peers,
        heartbeat_s=settings.heartbeat_s,
        max_message_bytes=seat.max_message_bytes,
        queued=seat.queued,
    )
    step_log.listen()
    replica = TrainedReplica(trainer, loader, codewords, hooks, step_log)
    try:
        return Worker(
            links=links,
            reduction=seat.reduction(links.send),
            model=module,
            optimizer=trainer.optimizers[0],
            precision=trainer.precision_plugin,
            replica=replica,
            messages=seat.messages,
            fingerprint=seat.fingerprint,
            timeout_s=settings.timeout_s,
            dispensable=settings.tolerate_exceptions,
            while_away=partial(_end_if_told, trainer),
        ).run()
    finally:
        replica.close()
        links.close()


def _end_if_told(trainer: pl.Trainer) -> None:
    """Answer SIGTERM while rank 0, whose to answer it is, is away: who sent it would wait, and kill.

    Raises:
        ToldToEnd: it has come.
    """
    if trainer.received_sigterm:
        raise ToldToEnd(128 + signal.SIGTERM)


def serve_forked(
    trainer: pl.Trainer,
    settings: ExchangeSettings,
    meeting: Meeting,
    memory: SharedMemory,
    worker: int,
    loader: CodedLoader,
    at: tuple[int, int] | None,
) -> None:
    """Be a worker in a process that was forked for an exchange, and end the fit as Lightning does.

    ``memory``: of all ranks. ``at``: epoch and batch that rank 0 had started when it forked; None: training was still
    to begin.
    """
    try:
        step_log = StepLog(trainer.lightning_module, everything=settings.dedicated_coordinator, keep=False)
        hooks = TrainingHooks(trainer, step_log, at)
        end = _serve(
            trainer, settings, meeting, meeting.store(settings.timeout_s), memory, worker, loader, hooks, step_log
        )
        if end.batch_index != NO_BATCH:
            return  # others are forked for the next exchange
        hooks.finish(end)
        trainer.fit_loop.on_run_end()
        call._call_callback_hooks(trainer, "on_fit_end")
        call._call_lightning_module_hook(trainer, "on_fit_end")
        call._call_callback_hooks(trainer, "teardown", stage=TrainerFn.FITTING)
        call._call_lightning_module_hook(trainer, "teardown", stage=TrainerFn.FITTING)
    except BaseException:
        traceback.print_exc()
        raise


class WorkerRankLauncher(_Launcher):
    """Takes a process that was started as a worker along Lightning's own road, as far as its fit and past it.

    The script of a worker process runs as rank 0's does. The fit that it was started for ends the process; earlier ones
    are over. A worker that this package did not start (the first process of another machine, or all of them under
    torchrun or SLURM) serves every fit in turn and goes on. Only rank 0 validates, tests and predicts: of these calls,
    and of fits that are over, a worker is told what they led to.

    Args:
        outcome: waits for what a call of rank 0's, by its number, led to.
    """

    def __init__(self, outcome: Callable[[int], str]) -> None:
        self._outcome = outcome
        if ENV_PARENT in os.environ:
            watch_parent(int(os.environ[ENV_PARENT]))

    @property
    def is_interactive_compatible(self) -> bool:
        """A worker process has no user in front of it."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer, **kwargs: Any) -> Any:
        """Run ``function`` when it is a fit that this process takes part in."""
        fit = trainer.state.fn is TrainerFn.FITTING
        entry = entries().enter(fit=fit)
        if fit and ENV_FIT not in os.environ:
            function(*args, **kwargs)
        elif fit and entries().fits - 1 == int(os.environ[ENV_FIT]):
            self._end_with(function, *args, **kwargs)
        try:
            returned = adopt(trainer, self._outcome(entry))
        except ConnectionError:
            if trainer.received_sigterm:  # a scheduler has told the whole job to end, and rank 0 has
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
        return None if fit else returned

    def _end_with(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        code = 0
        try:
            function(*args, **kwargs)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def kill(self, signum: Any) -> None:
        """A worker started no processes."""


class RankZeroLauncher(_Launcher):
    """Counts rank 0's calls, and tells ranks that were started elsewhere what they led to.

    Args:
        meet: opens the place where those ranks are told; None: there are none.
        ranks: those ranks.
    """

    def __init__(self, meet: Callable[[], Rendezvous] | None, ranks: list[int]) -> None:
        self._meet, self._ranks = meet, ranks

    @property
    def is_interactive_compatible(self) -> bool:
        """Rank 0 is the user's own process."""
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer, **kwargs: Any) -> Any:
        """Run ``function``."""
        job = entries()
        entry = job.enter(fit=trainer.state.fn is TrainerFn.FITTING)
        if self._meet is not None and job.store is None:
            job.attach(self._meet(), self._ranks)
        returned = function(*args, **kwargs)
        job.ended(entry, outcome_of(trainer, returned))
        return returned

    def kill(self, signum: Any) -> None:
        """Lightning asks on SIGTERM; workers are ended with the fit."""
