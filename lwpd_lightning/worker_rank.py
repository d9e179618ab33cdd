"""A worker process' side of a fit: find rank 0, then answer every version with a codeword until told to stop."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from torch import nn

from lwpd_lightning.coding import BlockMap, Code
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.compute import CodewordComputation
from lwpd_lightning.data import CodedLoader, derive_seed
from lwpd_lightning.exchange.arena import Arena
from lwpd_lightning.exchange.keys import RunKey
from lwpd_lightning.exchange.mesh import WorkerLinks
from lwpd_lightning.exchange.message import Messages
from lwpd_lightning.exchange.reduction import Ranks, Reduction, SharedMemory
from lwpd_lightning.exchange.rendezvous import Rendezvous
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.exchange.transport import Payload
from lwpd_lightning.exchange.update import Codeword, Contribution
from lwpd_lightning.exchange.worker import Assignment, Worker
from lwpd_lightning.launcher import Workers, job_command, watch_parent
from lwpd_lightning.settings import ExchangeSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl

ENV_KEY = "LWPD_RUN_KEY"
ENV_FIT = "LWPD_FIT"
ENV_PARENT = "LWPD_PARENT"

_HEADROOM_BYTES = 1 << 20  # header, layout digests, tracebacks
_LEAST_WINDOW, _LONGEST_WINDOW = 2, 64


@dataclass(frozen=True)
class Meeting:
    """Where and under which key the ranks of a fit meet; forked ones also by what memory.

    Attributes:
        run_key: the run's secret.
        host: address of the store.
        port: its port.
        generation: which fit of the run it is.
        arena: memory shared with forked workers.
        memory: what of it codewords and decoded gradients lie in.
    """

    run_key: RunKey
    host: str
    port: int
    generation: int
    arena: Arena | None = None
    memory: SharedMemory | None = None

    @property
    def messages(self) -> Messages:
        """Packs and reads the messages of the fit."""
        return Messages(self.run_key.run_id(self.generation), self.arena)

    def environment(self, node_rank: int, local_rank: int) -> dict[str, str]:
        """What a process that reruns the job must find in its environment to become this worker."""
        return {
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            "NODE_RANK": str(node_rank),
            "LOCAL_RANK": str(local_rank),
            ENV_KEY: self.run_key.hex(),
            ENV_FIT: str(self.generation),
            ENV_PARENT: str(os.getpid()),
        }


_fits: Counter[tuple[str, ...]] = Counter()


def next_generation() -> int:
    """Count the fits of this job in this process, whatever trainer they belong to: every rank counts the same."""
    job = tuple(job_command()[0])
    _fits[job] += 1
    return _fits[job] - 1


def fingerprint(module: nn.Module, blocks: BlockMap, code: Code, loader: CodedLoader) -> bytes:
    """32 bytes that the ranks of one fit share and other fits do not: shapes, code, batches and seed."""
    layout = StateLayout.everything(module, blocks.device).digest()
    # Rounded: another processor's solver may differ in the last bits of a gradient_code.
    generator = (code.generator * 1e6).round().long().numpy().tobytes()
    return hashlib.sha256(layout + generator + loader.fingerprint()).digest()


def max_message_bytes(module: nn.Module, blocks: BlockMap) -> int:
    """No honest frame of this run is longer, in either direction."""
    return StateLayout.everything(module, blocks.device).nbytes + _HEADROOM_BYTES


def window(blocks: BlockMap, settings: ExchangeSettings) -> int:
    """Updates that a late worker may find waiting when it is done: as many as take the room of half a float32 model."""
    update = settings.update_wire(blocks.dtype).nbytes(settings.rows * blocks.block_size)
    return max(_LEAST_WINDOW, min(_LONGEST_WINDOW, 2 * blocks.numel // update))


def reduction(
    blocks: BlockMap,
    settings: ExchangeSettings,
    meeting: Meeting,
    worker: int | None,
    send: Callable[[int, Sequence[Payload]], None],
    feedback: ErrorFeedback | None,
    seed: int,
) -> Reduction:
    """The share of one rank in adding up; ``worker``: its row of the code, None for a dedicated coordinator."""
    code = settings.code
    assert code is not None
    return Reduction(
        ranks=Ranks(worker, None if settings.dedicated_coordinator else 0, set(range(code.n))),
        blocks=blocks,
        code=code,
        wire=settings.wire(blocks.dtype, blocks.device),
        update_wire=settings.update_wire(blocks.dtype, derive_seed(seed, code.n, -1 if worker is None else worker)),
        messages=meeting.messages,
        send=send,
        memory=meeting.memory,
        feedback=feedback,
        along_direction=settings.along_direction,
    )


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
        feedback = ErrorFeedback(code, worker, blocks) if settings.error_feedback else None
        computation = CodewordComputation(
            trainer,
            code,
            worker,
            blocks,
            seed,
            wire=settings.wire(blocks.dtype, blocks.device, derive_seed(seed, worker)),
            slot=meeting.memory.codewords[worker] if meeting.memory is not None else None,
            feedback=feedback,
        )
        known = {worker, 0} if not settings.dedicated_coordinator else {worker}
        links = WorkerLinks(
            meeting.run_key,
            worker,
            address,
            peers=[other for other in range(code.n) if other not in known and meeting.memory is None],
            heartbeat_s=settings.heartbeat_s,
            max_message_bytes=max_message_bytes(module, blocks),
            queued=queued(window(blocks, settings)),
        )
    except BaseException:
        traceback.print_exc()  # there is no link yet that could carry it to rank 0
        raise
    module.log = _log_nothing  # type: ignore[method-assign]

    def compute(assignment: Assignment) -> tuple[Codeword, Contribution]:
        _take_position(trainer, assignment)
        batch = loader.batch(assignment.epoch, assignment.batch_index)
        computation.begin(assignment.version)
        touched = computation.add_parts(batch, computation.parts)
        return computation.finish(batch, touched)

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


def queued(window: int) -> int:
    """Messages that may wait for a rank: an update makes four for it on the busiest link."""
    return 4 * window + 8


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
