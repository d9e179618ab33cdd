"""Rank 0's side of one fit: publishes versions, and turns Lightning's own training step into one coded update.

Long because all that Lightning's loop does on rank 0 between two updates meets the exchange here.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lwpd_lightning.coordination import coordinator_of, workers_beside
from lwpd_lightning.data import CodedLoader, loader_of
from lwpd_lightning.data.batch_size import share_of_batch
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.state import Checksums, StateLayout, Structure
from lwpd_lightning.exchange.update import Failure, Step, Update
from lwpd_lightning.gathering import Gathering
from lwpd_lightning.launcher import suggested_threads
from lwpd_lightning.links.header import NO_BATCH
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.loss_scale import scale_gradients
from lwpd_lightning.remembered import KEY, Remembered, gathered
from lwpd_lightning.seat import Seat
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.steering import Steering
from lwpd_lightning.step_log import StepLog
from lwpd_lightning.timeline import Timeline
from lwpd_lightning.validation import SharedValidation

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)

# How long an update that is waited for may go on after SIGTERM: who sent it will not wait for long.
_FINISH_S = 5.0


class CodedFit:
    """One fit over coded exchange, from `start` (before the first batch) to `stop`.

    Args:
        trainer: the trainer, at ``on_train_start``.
        settings: resolved for the world size.
        gathering: its workers.
        remembered: what senders are to go on with.
        validation: where validation is shared.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: ExchangeSettings,
        gathering: Gathering,
        remembered: Remembered,
        validation: SharedValidation | None = None,
    ) -> None:
        assert settings.code is not None and settings.wait_for is not None
        self._trainer, self._settings, self._gathering = trainer, settings, gathering
        self.remembered, self._validation = remembered, validation
        self._validates: int | None = None  # the version of which workers were told to validate their shares
        self._own = None if settings.dedicated_coordinator else 0
        self._threads = torch.get_num_threads()
        module = trainer.lightning_module
        self._step_log = StepLog(module, everything=False, keep=True)
        self._timeline = Timeline(workers_ask=is_overridden("optimizer_step", module))
        self._failures: list[Failure] = []  # of earlier exchanges
        self._coordinator: Coordinator | None = None
        self._steering: Steering | None = None
        self._touched: set[int] = set()  # parameters, by position, that got a gradient of it
        self._samples = 0  # in each of its data parts
        self._step_s, self._delivered = 0.0, 0.0
        self._told: float | None = None  # when SIGTERM was noticed while an update was waited for
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
        if self._settings.remembers and self._trainer.global_step:  # what a tuner saved before has nothing to lack
            self.remembered.say_what_lacks(self._settings.code.n)
        torch.set_num_threads(suggested_threads(self._gathering.local_ranks))
        rank_zero_info(share_of_batch(self._loader.batch_size, self._settings.code))
        self._begin(None)

    def _begin(self, at: tuple[int, int] | None) -> None:
        """Begin an exchange of what is trainable now, ``at`` an epoch and batch, or before the first one."""
        module = self._trainer.lightning_module
        self._structure = Structure(module)
        meeting = self._gathering.meet(self._loader, at)
        optimizer = self._trainer.optimizers[0]
        seat = Seat(self._settings, meeting, self._own, module, optimizer, self._loader, self._gathering.memory)
        self._blocks = seat.blocks
        self._checksums = Checksums(module, self._blocks.parameters)
        self._computation = seat.computation(self._trainer)
        lost = [] if self._settings.start_method == "fork" else [failure.worker for failure in self._failures]
        self._coordinator = self._coordinate(meeting.run_key, seat, lost)
        if self._validation is not None:
            self._validation.arrived = self._shares
        self._steering = Steering(self._trainer, StateLayout.buffers(module, self._blocks.device))
        self._coordinator.admit(self._gathering.announce_again)
        self._sender = seat.sender
        self.remembered.restore(self._coordinator, self._sender, self._own)

    def _coordinate(self, key: RunKey, seat: Seat, lost: list[int]) -> Coordinator:
        """Open rank 0's links, tell the workers where, and make what decides."""
        hub = Hub(
            key,
            workers_beside(self._settings, self._own),
            host=self._gathering.host,
            heartbeat_s=self._settings.heartbeat_s,
            max_message_bytes=seat.max_message_bytes,
            queued=seat.queued,
        )
        self._gathering.announce(hub.port, self._loader.seed)
        return coordinator_of(
            self._trainer,
            self._settings,
            seat,
            hub,
            own=self._own,
            lost=lost,
            exited=self._gathering.exited,
            fence=self._gathering.fence,
            start_again=self._gathering.start_again,
        )

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
            self._gathering.end()
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
            coordinator.contribute(*computation.finish(self._samples, self._touched, self._step_log.take()))
            self._collect()
        self._publish_ahead(batch.index)
        coordinator.deliver()
        scale_gradients(self._trainer.precision_plugin, self._blocks.parameters)
        self._delivered = time.monotonic()

    def _collect(self) -> None:
        assert self._coordinator is not None
        self.last_update = self._coordinator.collect(self._end_if_told)
        self.remembered.forget()
        if any(self.last_update.logged):
            self._step_log.relog(self.last_update.logged)

    def _end_if_told(self, enough: bool) -> None:
        """SIGTERM ends a run after the update under way, but not after one that nobody knows the end of."""
        if not self._trainer.received_sigterm:
            return
        self._told = self._told or time.monotonic()
        if not enough or time.monotonic() - self._told > _FINISH_S:
            raise SystemExit(128 + signal.SIGTERM)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what Lightning does not know of: what senders remember of codewords."""
        if not self._settings.remembers:
            return
        if self._coordinator is None or not self.running:
            log.warning(
                "The fit is over, so this checkpoint lacks the memory of error feedback; those of callbacks have it."
            )
            return
        nbytes = sum(parameter.nbytes for parameter in self._blocks.parameters)
        checkpoint[KEY] = gathered(
            self._coordinator, self._settings, self._sender, self._own, nbytes=nbytes, last=self.last_update
        )

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
            self._end(epochs, await_farewell=completed and self._gathering.elsewhere)
        finally:
            self._gathering.end()
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
        batch, validates = self._following(batch_index), self._validation is not None and self._validation.follows
        self._coordinator.publish(
            *batch, self._trainer.global_step + 1, self._timeline.ahead(batch), step=step, validates=validates
        )
        self._validates = self._coordinator.version if validates else None

    def _shares(self, ranks: set[int], seconds: float) -> dict[int, Tensor]:
        """Those ranks' shares of the validation of this version, as far as they come in time."""
        coordinator, rank_of = self._coordinator, int(self._own is None)
        if coordinator is None or self._validates != coordinator.version:
            return {}
        workers = {rank - rank_of for rank in ranks}
        told = coordinator.shares.wait(workers, coordinator.version, self._checksums.take(), seconds)
        return {worker + rank_of: share for worker, share in told.items()}

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


def _reached(limit: int | None, count: int) -> bool:
    return limit is not None and limit != -1 and count >= limit
