"""Rank 0's side of one fit: starts the workers, publishes versions, and turns Lightning's own training step into one
coded update."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lwpd_lightning.coding import Code
from lwpd_lightning.data import CodedLoader, loader_of
from lwpd_lightning.entries import entries
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.membership import Membership
from lwpd_lightning.exchange.parts import SharedMemory
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksums, StateLayout, Structure
from lwpd_lightning.exchange.update import Failure, Step, Update
from lwpd_lightning.launcher import Workers, fork_workers, rerun_workers, suggested_threads
from lwpd_lightning.links import rendezvous
from lwpd_lightning.links.header import NO_BATCH
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.transport import Hub
from lwpd_lightning.loss_scale import scale_gradients
from lwpd_lightning.meeting import ENV_KEY, Meeting
from lwpd_lightning.rule.adaptive_wait import AdaptiveWait
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.seat import Seat, shared_memory
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.steering import Steering
from lwpd_lightning.step_log import StepLog, combined, from_json, relog, to_json
from lwpd_lightning.timeline import Timeline
from lwpd_lightning.worker_rank import serve_forked

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
    ) -> None:
        assert settings.code is not None and settings.wait_for is not None
        self._trainer, self._settings, self._environment = trainer, settings, environment
        self._local_ranks, self._num_nodes, self._generation = local_ranks, num_nodes, generation
        self._rank_of = 1 if settings.dedicated_coordinator else 0  # of worker 0
        # Whether there are workers that this process does not start.
        self._elsewhere = num_nodes > 1 or environment.creates_processes_externally
        self._own = None if settings.dedicated_coordinator else 0
        self._threads = torch.get_num_threads()
        self._workers = Workers({})
        self._entries = entries()
        module = trainer.lightning_module
        self._step_log = StepLog(module, everything=False, keep=True)
        self._timeline = Timeline(workers_ask=is_overridden("optimizer_step", module))
        self._meeting: Meeting | None = None
        self._failures: list[Failure] = []  # of earlier exchanges
        self._coordinator: Coordinator | None = None
        self._steering: Steering | None = None
        self._touched: set[int] = set()  # parameters, by position, that got a gradient of it
        self._samples = 0  # in each of its data parts
        self._step_s, self._delivered = 0.0, 0.0
        self.last_update: Update | None = None

    @property
    def _loader(self) -> CodedLoader:
        loader = loader_of(self._trainer)  # another one after each reload
        assert loader is not None
        return loader

    @property
    def failures(self) -> list[Failure]:
        """The workers that became erasures, in the order in which they were lost."""
        return self._failures + (self._coordinator.failures if self._coordinator is not None else [])

    def start(self) -> None:
        """Start the workers of this machine and wait until all workers of the run have joined.

        Raises:
            WorkerFailed: a worker ended before it joined.
            TimeoutError: a worker did not join in ``timeout_s``.
        """
        assert self._settings.code is not None
        for advice in self._settings.warm_up():
            log.warning(advice)
        torch.set_num_threads(suggested_threads(self._local_ranks))
        rank_zero_info(share_of_batch(self._loader.batch_size, self._settings.code))
        self._begin(None)

    def _begin(self, at: tuple[int, int] | None) -> None:
        """Begin an exchange of what is trainable now, ``at`` an epoch and batch, or before the first one."""
        module = self._trainer.lightning_module
        self._structure = Structure(module)
        meeting, memory, listener = self._meet(at)
        seat = Seat(self._settings, meeting, self._own, module, self._loader, memory)
        self._blocks = seat.blocks
        self._checksums = Checksums(module, self._blocks.parameters)
        self._computation = seat.computation(self._trainer)
        lost = [] if self._settings.start_method == "fork" else [failure.worker for failure in self._failures]
        self._coordinator = self._coordinate(meeting, seat, listener, lost)
        self._steering = Steering(self._trainer, StateLayout.buffers(module, self._blocks.device))
        self._coordinator.admit()

    def _meet(self, at: tuple[int, int] | None) -> tuple[Meeting, SharedMemory | None, socket.socket | None]:
        """Start the workers of this machine, or let those that run meet for another exchange."""
        environment, local = self._environment, range(1, self._local_ranks)
        if self._meeting is None and self._elsewhere:
            host, port = rendezvous.resolve(environment.main_address), environment.main_port
            self._meeting = Meeting(run_key_for(environment, self._num_nodes), host, port, self._generation)
            if not environment.creates_processes_externally:
                meeting = self._meeting
                self._workers = rerun_workers(local, lambda rank: meeting.environment(0, rank))
            return self._meeting, None, None
        if self._meeting is not None and self._settings.start_method == "rerun":
            self._meeting = replace(self._meeting, segment=self._meeting.segment + 1)
            return self._meeting, None, None
        listener = rendezvous.listen(rendezvous.LOOPBACK, 0)
        key, port = run_key_for(environment, self._num_nodes), listener.getsockname()[1]
        self._meeting, memory = Meeting(key, rendezvous.LOOPBACK, port, self._generation), None
        if self._settings.start_method == "rerun":
            meeting = self._meeting
            self._workers = rerun_workers(local, lambda rank: meeting.environment(0, rank))
        else:
            # Forked before any socket or thread of the exchange exists, so that none of them is inherited.
            memory = shared_memory(self._settings, self._trainer.lightning_module)
            self._workers = fork_workers(local, self._forked_work(self._meeting, memory, listener, at))
        return self._meeting, memory, listener

    @property
    def running(self) -> bool:
        """Whether the fit has not been stopped."""
        return not self._timeline.over

    def suspend(self) -> None:
        """End the exchange for now: a tuner trains in mid-fit. The next batch begins another.

        Raises:
            RuntimeError: where workers were not forked: none of them would follow.
        """
        if self._settings.start_method != "fork":
            raise RuntimeError(
                "a tuner's run in mid-fit (lr_find in a hook) needs start_method='fork': with "
                f"{self._settings.start_method!r}, find the learning rate before fit, on one device."
            )
        self._pause(self._trainer.current_epoch, 0)

    def _pause(self, epoch: int, batch_index: int) -> None:
        self._failures = self.failures
        forked = self._settings.start_method == "fork"
        self._end(epoch, batch_index, await_farewell=not forked)
        self._coordinator = None
        if forked:
            self._entries.detach()
            self._workers.end()
            self._loader.close()
        self._timeline.interrupted()

    def _begin_again(self, at: tuple[int, int]) -> None:
        """End the exchange and begin one of what is trainable now; whoever was forked is forked anew."""
        if self._coordinator is not None:
            level = logging.INFO if self._coordinator.updates > 1 else logging.WARNING  # again at once: it costs time
            log.log(level, "What is trained has changed: another exchange begins at epoch %d, batch %d", *at)
            self._pause(*at)
        self._begin(at)

    def _end(self, epoch: int, batch_index: int = NO_BATCH, *, await_farewell: bool) -> None:
        if self._steering is not None:
            self._steering.close()
        if self._coordinator is not None:
            self._coordinator.stop(epoch, self._trainer.global_step, batch_index, await_farewell=await_farewell)

    def training_step(self, step: Callable[..., Any], arguments: tuple[Any, ...], batch_index: int) -> Any:
        """Publish the version if that has not been done, then run rank 0's first data part."""
        loop = self._trainer.fit_loop
        if loop._skip_backward:  # the last epoch of StochasticWeightAveraging, for statistics of rank 0's model alone
            return step(*arguments)
        if not self._timeline.accumulating:
            self._publish_if_needed(self._trainer.current_epoch, batch_index)
        if self._computation is None:
            if loop._should_accumulate():
                return torch.zeros((), device=self._blocks.device)
            self._collect()
            assert self.last_update is not None
            return torch.tensor(self.last_update.loss, device=self._blocks.device)
        batch = self._loader.current
        assert batch is not None and self._coordinator is not None
        if not self._timeline.accumulating:
            self._computation.begin(self._coordinator.version, self._step_s + batch.fetch_s)
            self._touched, self._samples = set(), 0
        with self._computation.randomness(batch, self._computation.parts[0]), self._step_log.listening():
            return step(*arguments)

    def transfer(self, to_device: Callable[[], Any]) -> Any:
        """Move rank 0's first data part to the device under the randomness that any worker has there."""
        if self._computation is None or self._loader.current is None:
            return to_device()
        with self._computation.randomness(self._loader.current, self._computation.parts[0], transfer=True):
            return to_device()

    def backward(self, loss: Tensor, backward: Callable[[], None]) -> None:
        """Finish rank 0's codeword, wait for the others and leave the decoded gradient in ``.grad``.

        Args:
            loss: as training_step returned it; ``backward`` may be that of a multiple.
            backward: leaves the gradients of rank 0's first data part in ``.grad``.
        """
        computation, coordinator, batch = self._computation, self._coordinator, self._loader.current
        assert coordinator is not None and batch is not None
        if computation is not None:
            computation.clear_gradients()
            backward()
            first, *rest = computation.parts
            computation.encode(first, loss)
            self._touched.update(position for position, has in enumerate(self._blocks.touched()) if has)
            with self._step_log.listening():
                self._touched |= computation.add_parts(batch, tuple(rest))
            self._samples += batch.part_samples
        self._timeline.accumulating = self._trainer.fit_loop._should_accumulate()
        if self._timeline.accumulating:
            return
        if computation is not None:
            logged = to_json(self._step_log.take())
            coordinator.contribute(*computation.finish(self._samples, self._touched, logged))
            self._collect()
        self._publish_ahead(batch.index)
        coordinator.deliver()
        scale_gradients(self._trainer.precision_plugin, self._blocks.parameters)
        self._delivered = time.monotonic()

    def _collect(self) -> None:
        assert self._coordinator is not None
        self.last_update = self._coordinator.collect()
        if any(self.last_update.logged):
            relog(self._trainer.lightning_module, combined([from_json(told) for told in self.last_update.logged]))

    def stepped(self) -> None:
        """Note that the optimizer has stepped."""
        self._timeline.stepped()
        self._step_s = time.monotonic() - self._delivered

    def stop(self, *, completed: bool = False) -> None:
        """End the workers and put torch's thread count back; does nothing the second time.

        ``completed``: the fit ended as it should, so workers on other machines are waited for to end too.
        """
        if self._timeline.over:
            return
        self._timeline.over = True
        epochs = self._trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        try:
            self._end(epochs, await_farewell=completed and self._elsewhere)
        finally:
            if not self._elsewhere:
                self._entries.detach()
            self._workers.end()
            self._loader.close()
            torch.set_num_threads(self._threads)

    def _publish_ahead(self, batch_index: int) -> None:
        """Before rank 0's own step: send the version that it leads to with the batch that comes next.

        Workers then step while rank 0 does, and compute while it logs and validates.
        """
        assert self._coordinator is not None
        if self._structure.changed:
            self._timeline.interrupted()  # the next batch begins another exchange
            return
        step = Step(self._coordinator.decided, self._optimizer_settings())
        batch = self._following(batch_index)
        self._coordinator.publish(*batch, self._trainer.global_step + 1, self._timeline.ahead(batch), step=step)

    def _following(self, batch_index: int) -> tuple[int, int]:
        """Epoch and index of the batch that comes after one of this epoch; NO_BATCH where training ends with it."""
        trainer, loop = self._trainer, self._trainer.fit_loop
        epoch, following = trainer.current_epoch, batch_index + 1
        if following >= trainer.num_training_batches or not self._loader.has(epoch, following):
            epoch, following = epoch + 1, 0
        over = _reached(loop.max_steps, trainer.global_step + 1) or (not following and _reached(loop.max_epochs, epoch))
        return epoch, NO_BATCH if over else following

    def _optimizer_settings(self) -> list[dict[str, object]]:
        """By what the optimizer is about to step: schedulers and users may change it right after."""
        settings = [
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items()}
            for group in self._trainer.optimizers[0].param_groups
        ]
        for group in settings:
            del group["params"]
        return settings

    def _publish_if_needed(self, epoch: int, batch_index: int) -> None:
        """Publish unless this very batch and model were published before the last step.

        Validation may have changed something since, or the loop may have gone elsewhere. What hooks did to the model
        they did on every rank, as the checksums of codewords show.
        """
        batch = epoch, batch_index
        if self._coordinator is None or self._structure.changed:
            self._begin_again(batch)
        assert self._coordinator is not None and self._steering is not None
        steered, attributes = self._steering.take()
        if steered:
            self._timeline.moved()
        how = self._timeline.begins(batch)
        if how is not None:
            self._coordinator.publish(*batch, self._trainer.global_step, how, attributes=attributes)
        self._coordinator.arrived(self._checksums.take())

    def _coordinate(self, meeting: Meeting, seat: Seat, listener: socket.socket | None, lost: list[int]) -> Coordinator:
        settings, module = self._settings, self._trainer.lightning_module
        assert settings.code is not None and settings.wait_for is not None
        workers = [worker for worker in range(settings.code.n) if worker != self._own]
        link_host = meeting.host if self._num_nodes > 1 else rendezvous.LOOPBACK
        hub = Hub(
            meeting.run_key,
            workers,
            host=link_host,
            heartbeat_s=settings.heartbeat_s,
            max_message_bytes=seat.max_message_bytes,
            queued=seat.queued,
        )
        if listener is None:
            store = self._entries.store
            assert store is not None
            store = store.of(self._generation)
        else:
            store = rendezvous.Rendezvous.host(listener, self._generation, settings.timeout_s, meeting.run_key)
            self._entries.attach(store, [])
        store.announce(rendezvous.endpoint(link_host, hub.port), self._loader.seed, meeting.segment)
        least, most = settings.waits
        adaptive = None
        if settings.wait_for == "adaptive":
            adaptive = AdaptiveWait(
                settings.code,
                least,
                most,
                always=self._own,
                feedback=settings.remembers,
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
            feedback=settings.remembers,
            adaptive=adaptive,
        )
        reducing = seat.reduction(hub.send)
        members = Membership(workers, self._own, grace_s=settings.heartbeat_s / 6, join_s=2 * settings.heartbeat_s)
        for worker in lost:
            members.lose(worker)
            rule.lose(worker)
            reducing.ranks.workers.discard(worker)
        optimizer, precision = self._trainer.optimizers[0], self._trainer.precision_plugin
        return Coordinator(
            hub=hub,
            members=members,
            publication=Publication(hub, seat.messages, module, self._blocks.device, optimizer, precision),
            rule=rule,
            reduction=reducing,
            model=module,
            messages=seat.messages,
            fingerprint=seat.fingerprint,
            first_version=self._trainer.global_step,
            min_workers=settings.fewest_workers,
            timeout_s=settings.timeout_s,
            exited=lambda worker, wait_s: self._workers.exited(worker + self._rank_of, wait_s),
            fence=self._fence,
        )

    def _fence(self, worker: int) -> None:
        """A fork that was silent for long may wake, and shares the memory in which others add up."""
        if self._settings.start_method == "fork":
            self._workers.kill(worker + self._rank_of)

    def _forked_work(
        self, meeting: Meeting, memory: SharedMemory, listener: socket.socket, at: tuple[int, int] | None
    ) -> Callable[[int], None]:
        def work(rank: int) -> None:
            listener.close()  # rank 0's alone
            self._environment.set_global_rank(rank)
            self._trainer.strategy._fit = None  # type: ignore[attr-defined]  # whose links and processes are rank 0's
            serve_forked(self._trainer, self._settings, meeting, memory, rank - self._rank_of, self._loader, at)

        return work


def share_of_batch(batch_size: int | None, code: Code) -> str:
    """What an update's batch is, and each worker's share of it, in a sentence.

    >>> from lwpd_lightning import lwpd_code
    >>> share_of_batch(64, lwpd_code(8, 4, 2))
    "An update's batch is batch_size=64 samples for all 8 workers together; each computes 32 to 64 of them."
    """
    whole = "a batch of the batch sampler" if batch_size is None else f"batch_size={batch_size} samples"
    of_100, unit = (100, "%") if batch_size is None else (batch_size, "")
    parts = [len(code.parts(worker)) for worker in range(code.n)]
    shares = (f"{of_100 * count // code.data_parts}{unit}" for count in sorted({min(parts), max(parts)}))
    share = " to ".join(shares)
    return f"An update's batch is {whole} for all {code.n} workers together; each computes {share} of them."


def _reached(limit: int | None, count: int) -> bool:
    return limit is not None and limit != -1 and count >= limit


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


def meet_elsewhere(environment: ClusterEnvironment, num_nodes: int, timeout_s: float) -> rendezvous.Rendezvous:
    """Open the store at the main address, on which processes that this one does not start meet for all calls of a job.

    Under torchrun its agent has one there.
    """
    host, port = rendezvous.resolve(environment.main_address), environment.main_port
    key = run_key_for(environment, num_nodes)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return rendezvous.Rendezvous.join(host, port, 0, timeout_s, key)
    return rendezvous.Rendezvous.host(rendezvous.listen(host, port), 0, timeout_s, key)
