"""Rank 0's side of one fit: starts the workers, publishes versions, and turns Lightning's own training step into one
coded update."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lwpd_lightning.coding import BlockMap, kernels
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.compute import CodewordComputation
from lwpd_lightning.data import CodedLoader, loader_of
from lwpd_lightning.exchange import rendezvous
from lwpd_lightning.exchange.adaptive_wait import AdaptiveWait
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.keys import RunKey
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.rule import ArrivalRule
from lwpd_lightning.exchange.state import checksum
from lwpd_lightning.exchange.transport import Hub
from lwpd_lightning.exchange.update import Failure, Step, Update
from lwpd_lightning.launcher import Workers, fork_workers, rerun_workers, suggested_threads
from lwpd_lightning.meeting import (
    ENV_KEY,
    Meeting,
    computation,
    error_feedback,
    fingerprint,
    max_message_bytes,
    queued,
    reduction,
)
from lwpd_lightning.refusals import refuse_accumulation
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.worker_rank import serve

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.fabric.plugins import ClusterEnvironment

log = logging.getLogger(__name__)


class CodedFit:
    """One fit over coded exchange, from `start` (before the first batch) to `stop`.

    Args:
        trainer: the trainer, at ``on_train_start``.
        settings: resolved for the world size.
        environment: tells ranks, nodes and the main address.
        local_ranks: processes on this machine.
        num_nodes: machines.
        generation: which fit of this process it is, from 0.
        loader: the training loader.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: ExchangeSettings,
        environment: ClusterEnvironment,
        *,
        local_ranks: int,
        num_nodes: int,
        generation: int,
        loader: CodedLoader,
    ) -> None:
        assert settings.code is not None and settings.wait_for is not None
        self._trainer, self._settings, self._environment = trainer, settings, environment
        self._local_ranks, self._num_nodes, self._generation = local_ranks, num_nodes, generation
        self._known_loader = loader
        self._rank_of = 1 if settings.dedicated_coordinator else 0  # of worker 0
        # Whether there are workers that this process does not start.
        self._elsewhere = num_nodes > 1 or environment.creates_processes_externally
        self._own = None if settings.dedicated_coordinator else 0
        self._blocks = BlockMap(trainer.lightning_module.parameters(), settings.code.blocks)
        self._computation: CodewordComputation | None = None
        self._threads = torch.get_num_threads()
        self._workers = Workers({})
        self._coordinator: Coordinator | None = None
        self._published: tuple[int, int] | None = None
        self._ahead = True
        self._settings_used: list[dict[str, object]] = []
        self._step: Step | None = None  # that was made since the last gradient
        self._stepping = False  # whether workers may have made a step that is still to come here
        self._checksum = 0  # of the parameters after it, or as workers were given them last
        self._store: rendezvous.Rendezvous | None = None
        self._stopped = False
        self.last_update: Update | None = None

    @property
    def _loader(self) -> CodedLoader:
        """The training loader, which Lightning may have reloaded."""
        if (loader := loader_of(self._trainer)) is not None:
            self._known_loader = loader
        return self._known_loader

    @property
    def failures(self) -> list[Failure]:
        """The workers that became erasures, in the order in which they were lost."""
        return self._coordinator.failures if self._coordinator is not None else []

    def start(self) -> None:
        """Start the workers of this machine and wait until all workers of the run have joined.

        Raises:
            WorkerFailed: a worker ended before it joined.
            TimeoutError: a worker did not join in ``timeout_s``.
        """
        environment, external = self._environment, self._environment.creates_processes_externally
        assert self._settings.code is not None
        ternary = "ternary" in (self._settings.wire_dtype, self._settings.update_dtype)
        if self._settings.code.direction is not None or ternary:
            kernels.compiled()  # before workers are forked, which then share it
        if ternary and kernels.compiled() is None:
            log.warning(
                "numpy packs the ternary values; numba is many times as fast: pip install 'lwpd-lightning[fast]'"
            )
        host = rendezvous.resolve(environment.main_address) if self._elsewhere else rendezvous.LOOPBACK
        port = environment.main_port if self._elsewhere else 0
        listener = None if _agent_serves_store() else rendezvous.listen(host, port)
        if listener is not None:
            port = listener.getsockname()[1]
        meeting = Meeting(run_key_for(environment, self._num_nodes), host, port, self._generation)
        torch.set_num_threads(suggested_threads(self._local_ranks))
        local = [] if external else range(1, self._local_ranks)
        if self._settings.start_method == "rerun":
            self._workers = rerun_workers(local, lambda rank: meeting.environment(0, rank))
        else:
            # Forked before any socket or thread of the exchange exists, so that none of them is inherited.
            meeting = meeting.with_memory(self._settings, self._blocks)
            self._workers = fork_workers(local, self._forked_work(meeting, listener))
        feedback = error_feedback(self._settings, self._own, self._blocks)
        if self._own is not None:
            self._computation = computation(
                self._trainer, self._settings, meeting, self._own, self._blocks, feedback, self._loader.seed
            )
        self._coordinator = self._coordinate(meeting, listener, feedback)
        self._checksum = checksum(self._blocks.parameters)  # of what those who join get
        self._coordinator.admit()

    def training_step(self, step: Callable[..., Any], arguments: tuple[Any, ...], batch_index: int) -> Any:
        """Publish the version if that has not been done, then run rank 0's first data part."""
        epoch = self._trainer.current_epoch
        self._publish_if_needed(epoch, batch_index)
        if self._computation is None:
            assert self._coordinator is not None
            self.last_update = self._coordinator.collect()
            return torch.tensor(self.last_update.loss, device=self._blocks.device)
        batch = self._loader.current
        assert batch is not None and self._coordinator is not None
        self._computation.begin(self._coordinator.version)
        with self._computation.randomness(batch, self._computation.parts[0]):
            return step(*arguments)

    def transfer(self, to_device: Callable[[], Any]) -> Any:
        """Move rank 0's first data part to the device under the randomness that any worker has there."""
        if self._computation is None or self._loader.current is None:
            return to_device()
        with self._computation.randomness(self._loader.current, self._computation.parts[0], transfer=True):
            return to_device()

    def backward(self, loss: Tensor, backward: Callable[[], None]) -> None:
        """Finish rank 0's codeword, wait for the others and leave the decoded gradient in ``.grad``."""
        computation, coordinator, batch = self._computation, self._coordinator, self._loader.current
        assert coordinator is not None and batch is not None
        if computation is not None:
            computation.clear_gradients()
            backward()
            first, *rest = computation.parts
            computation.encode(first, loss)
            touched = {position for position, has in enumerate(self._blocks.touched()) if has}
            touched |= computation.add_parts(batch, tuple(rest))
            coordinator.contribute(*computation.finish(batch, touched))
            self.last_update = coordinator.collect()
        self._publish_ahead(batch.index)
        coordinator.deliver()

    def about_to_step(self, optimizer: Optimizer) -> None:
        """Note by what settings the optimizer steps: schedulers and users may change them right after."""
        self._settings_used = [
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items()}
            for group in optimizer.param_groups
        ]
        for group in self._settings_used:
            del group["params"]

    def stepped(self) -> None:
        """Note what the optimizer step has led to: codewords that were computed elsewhere do not count."""
        assert self._coordinator is not None
        self._step, self._stepping = Step(self._coordinator.decided, self._settings_used), False
        self._checksum = checksum(self._blocks.parameters)
        if self._published is not None:
            self._coordinator.arrived(self._checksum)

    def stop(self, *, completed: bool = False) -> None:
        """End the workers and put torch's thread count back; does nothing the second time.

        ``completed``: the fit ended as it should, so workers on other machines are waited for to end too.
        """
        if self._stopped:
            return
        self._stopped = True
        try:
            if self._coordinator is not None:
                self._coordinator.stop(await_farewell=completed and self._elsewhere)
        finally:
            self._store = None
            self._workers.end()
            self._loader.close()
            torch.set_num_threads(self._threads)

    def _publish_ahead(self, batch_index: int) -> None:
        """Before rank 0's own step: send the version that it leads to with the batch that comes next.

        Workers then step while rank 0 does, and compute while it logs and validates. Where a callback was seen to
        change the weights after a step, the version waits for the next training_step.
        """
        assert self._coordinator is not None
        self._step, self._stepping, self._published = None, self._ahead, None
        if not self._ahead:
            return
        epoch, following = self._trainer.current_epoch, batch_index + 1
        if following >= self._trainer.num_training_batches or not self._loader.has(epoch, following):
            epoch, following = epoch + 1, 0
        step = Step(self._coordinator.decided, self._settings_used)
        self._publish(epoch, following, global_step=self._trainer.global_step + 1, step=step, ahead=True)

    def _publish_if_needed(self, epoch: int, batch_index: int) -> None:
        """Publish unless this very batch and model were published after the last step.

        A callback may have changed the weights since (clipping, averaging), or the loop may have gone elsewhere.
        """
        refuse_accumulation(self._trainer)
        trainable = [parameter.requires_grad for parameter in self._trainer.lightning_module.parameters()]
        if sum(trainable) != len(self._blocks.parameters) or not all(p.requires_grad for p in self._blocks.parameters):
            raise RuntimeError(
                "The set of trainable parameters changed during the fit: coded exchange fixes the layout of codewords "
                "at its start, so freeze or unfreeze between two fits instead."
            )
        now = checksum(self._blocks.parameters)
        moved = now != self._checksum or self._stepping  # a step that was not made has been made by workers
        self._checksum, self._ahead, self._stepping = now, not moved, False
        ahead = self._published
        if ahead is None or moved or ahead != (epoch, batch_index):
            # What was published ahead of a change must not count.
            void_older = ahead is not None
            step = None if moved or void_older else self._step
            self._publish(
                epoch,
                batch_index,
                global_step=self._trainer.global_step,
                step=step,
                moved=moved,
                void_older=void_older,
            )

    def _publish(
        self,
        epoch: int,
        batch_index: int,
        *,
        global_step: int,
        step: Step | None,
        ahead: bool = False,
        moved: bool = False,
        void_older: bool = False,
    ) -> None:
        assert self._coordinator is not None
        self._coordinator.publish(
            epoch,
            batch_index,
            global_step,
            checksum=None if ahead else self._checksum,
            step=step,
            moved=moved,
            void_older=void_older,
        )
        self._published = epoch, batch_index

    def _coordinate(self, meeting: Meeting, listener: Any, feedback: ErrorFeedback | None) -> Coordinator:
        settings, module = self._settings, self._trainer.lightning_module
        assert settings.code is not None and settings.wait_for is not None
        workers = [worker for worker in range(settings.code.n) if worker != self._own]
        link_host = meeting.host if self._num_nodes > 1 else rendezvous.LOOPBACK
        hub = Hub(
            meeting.run_key,
            workers,
            host=link_host,
            heartbeat_s=settings.heartbeat_s,
            max_message_bytes=max_message_bytes(module, self._blocks),
            queued=queued(self._blocks, settings),
        )
        if listener is None:
            store = rendezvous.Rendezvous.join(meeting.host, meeting.port, self._generation, settings.timeout_s)
        else:
            store = rendezvous.Rendezvous.host(listener, self._generation, settings.timeout_s)
        store.announce(rendezvous.endpoint(link_host, hub.port), self._loader.seed)
        self._store = store  # served as long as the fit lasts
        least, most = settings.waits
        adaptive = None
        if settings.wait_for == "adaptive":
            adaptive = AdaptiveWait(
                settings.code,
                least,
                most,
                always=self._own,
                feedback=settings.error_feedback,
                decoder=settings.decoder,
                max_staleness=0 if settings.stale == "drop" else settings.max_staleness,
            )
        rule = ArrivalRule(
            settings.code,
            most,
            decoder=settings.decoder,
            stale=settings.stale,
            max_staleness=settings.max_staleness,
            always=self._own,
            feedback=settings.error_feedback,
            adaptive=adaptive,
        )
        optimizer_state = self._trainer.strategy.optimizers[0].state_dict
        return Coordinator(
            hub=hub,
            publication=Publication(hub, meeting.messages, module, self._blocks.device, optimizer_state),
            rule=rule,
            reduction=reduction(self._blocks, settings, meeting, self._own, hub.send, feedback, self._loader.seed),
            model=module,
            messages=meeting.messages,
            fingerprint=fingerprint(module, self._blocks, settings.code, self._loader),
            first_version=self._trainer.global_step,
            min_workers=settings.fewest_workers,
            timeout_s=settings.timeout_s,
            exited=lambda worker, wait_s: self._workers.exited(worker + self._rank_of, wait_s),
        )

    def _forked_work(self, meeting: Meeting, listener: Any) -> Callable[[int], None]:
        def work(rank: int) -> None:
            if listener is not None:
                listener.close()  # rank 0's alone
            self._environment.set_global_rank(rank)
            serve(self._trainer, self._settings, meeting, rank - self._rank_of, self._loader)

        return work


def run_key_for(environment: ClusterEnvironment, num_nodes: int) -> RunKey:
    """The run's key: made here, or from LWPD_RUN_KEY where other nodes or a launcher must share it.

    Raises:
        ValueError: where it must be shared and is not in the environment.
    """
    if ENV_KEY in os.environ:
        return RunKey.from_hex(os.environ[ENV_KEY])
    if num_nodes > 1 or environment.creates_processes_externally:
        raise ValueError(
            f"{ENV_KEY} is not set, but processes that were started elsewhere (num_nodes={num_nodes}) must prove the "
            f"run's key: set it to the same value everywhere, for example {ENV_KEY}=$(openssl rand -hex 32)."
        )
    return RunKey.generate()


def seed_of_the_run() -> int:
    """The seed of ``seed_everything``, or a random one."""
    return int(os.environ.get("PL_GLOBAL_SEED") or secrets.randbits(32))


def _agent_serves_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
