"""What the coordinator tells its workers: versions, as optimizer steps that they make too, or its whole state."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.state import Stateful, StateLayout, to_bytes, whole_state
from lwpd_lightning.exchange.update import Step
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import EMPTY, Messages
from lwpd_lightning.links.transport import LinkLost

log = logging.getLogger(__name__)

# A worker that could not step as rank 0 did gets whole states for so many versions at most before it may try again.
_LONGEST_WHOLE = 64
# How often it is looked whether workers have hung up.
_LOOK_S = 0.2
# How long the end of the exchange waits for room for it in a worker's queue.
_TELLING_S = 1.0


@dataclass
class _Whole:
    """A worker that gets whole states: for how many versions more, and how many it got the last time."""

    left: int = 0
    length: int = 0


class Publication:
    """Sends to workers; knows what each already has.

    Args:
        hub: links to the workers.
        messages: packs this fit's messages.
        model: the module that is trained.
        device: its parameters'.
        optimizer: its optimizer.
        precision: holds the scale of the loss, where there is one.

    Attributes:
        bytes_sent: so far, headers included.
        awaiting: workers that get the state of the version published last once it is there.
    """

    def __init__(
        self,
        hub: Hub,
        messages: Messages,
        model: nn.Module,
        device: torch.device,
        optimizer: Stateful,
        precision: Stateful,
    ) -> None:
        self.bytes_sent = 0
        self._hub, self._messages = hub, messages
        self._optimizer, self._precision = optimizer, precision
        self._everything = StateLayout.everything(model, device)
        self._buffers = StateLayout.buffers(model, device)
        self._now = self._buffers.buffer()
        self._sent_buffers = EMPTY
        self._sent_settings: object = None
        self._attributes: dict[str, object] = {}  # all that validation has changed so far
        self._position: Header | None = None
        self._decided = 0
        self._whole: dict[int, _Whole] = {}
        self._void: dict[int, int] = {}  # what a worker computed below this version counts nowhere
        self.awaiting: list[int] = []

    def header(self, op: Op, version: int = 0) -> Header:
        """The coordinator's header."""
        return Header(op, self._messages.run_id, COORDINATOR, version)

    def send(self, workers: Sequence[int], header: Header, payload: Tensor = EMPTY, rest: Tensor = EMPTY) -> None:
        """Send one message to each of the workers."""
        frames = self._messages.pack(header, payload, rest)
        self.bytes_sent += sum(len(frame) for frame in frames) * len(workers)
        for worker in workers:
            self._hub.send(worker, frames)

    def publish(
        self,
        workers: Sequence[int],
        position: Header,
        step: Step | None,
        attributes: dict[str, object] | None = None,
        *,
        decided: int,
        moved: bool = False,
        validates: bool = False,
    ) -> None:
        """Tell workers of a version; those that need the whole state get both from `arrived`.

        Args:
            workers: whom.
            position: the message's header: version, batch, decision.
            step: the optimizer step that leads to it.
            attributes: of the module that validation has changed.
            decided: number of the newest decision that it is the outcome of, or that it has done without.
            moved: something else changed the model too, so that they need the whole state.
            validates: rank 0 is about to validate the version, and they their shares.
        """
        self._position, self._decided = position, decided
        self.awaiting = [worker for worker in workers if self._needs_whole(worker) or moved]
        if not workers:
            return
        told, buffers = self._told(step, attributes, validates), self._changed_buffers()
        self.send([worker for worker in workers if worker not in self.awaiting], position, buffers, told)

    def arrived(self) -> None:
        """The model is at the version that was published last."""
        self._buffers.pack(self._now)
        if self.awaiting:
            self._send_state(self.awaiting, void=0)
            self.awaiting = []

    def take_over(self, worker: int, *, diverged_at: int | None = None) -> None:
        """Give a worker the whole state of the version published last, which is the model's state now.

        Args:
            worker: that missed something.
            diverged_at: or that computed at this version on other parameters than rank 0's: what it computed is void.
                It would end elsewhere again, so it gets whole states for a while.
        """
        assert self._position is not None
        if diverged_at is not None:
            whole = self._whole.setdefault(worker, _Whole())
            whole.left = whole.length = min(_LONGEST_WHOLE, 2 * whole.length + 1)
            reason = "its parameters are not rank 0's after the same step"
            log.warning("Worker %d takes over rank 0's state at version %d: %s", worker, self._position.version, reason)
        void = 0 if diverged_at is None else diverged_at + 1
        # Also of a codeword that was refused: it may have missed just that, and hold it for ever.
        self._send_state([worker], void=max(void, self._void.get(worker, 0)))

    def refuse(self, worker: int, version: int) -> None:
        """Tell a worker that its codeword of a version is too large to count, and goes nowhere."""
        self._void[worker] = version + 1
        self.send([worker], self.header(Op.VOID, version))

    def farewell(self, end: Header, workers: Iterable[int], present: Iterable[int], patience_s: float) -> None:
        """Tell all ``workers``, those that were given up too, that the exchange is over.

        Then read on until those that are ``present`` have hung up, for ``patience_s`` seconds at most. A socket that is
        closed with codewords unread takes back what it has sent; a worker behind a slow link would not hear the end.
        One for which there was no room yet is told when there is, within a moment where there is no patience: it would
        take the end of its link for a broken one, and try to come back.
        """
        self.send(sorted(workers), end)
        staying, started = set(present), time.monotonic()

        def waits_s() -> float:
            return max(patience_s, _TELLING_S if self._hub.refused & staying else 0.0)

        while True:
            for event in self._hub.events(min(_LOOK_S, waits_s())):
                if isinstance(event, LinkLost):
                    staying.discard(event.worker)
                elif not self._hub.uses(event.worker, event.link):  # that of one which wants to come back
                    self._hub.answer(event.link, self._messages.pack(end))
            for worker in self._hub.refused & staying:
                self._hub.refused.discard(worker)
                self.send([worker], end)
            if not staying or time.monotonic() - started >= waits_s():
                return

    def forget(self, worker: int) -> None:
        """A worker is lost: another process may take its place."""
        self._whole.pop(worker, None)
        self._void.pop(worker, None)

    def _send_state(self, workers: Sequence[int], *, void: int) -> None:
        """The whole state and then the version; what was computed at versions below ``void`` counts nowhere."""
        assert self._position is not None
        state = self._position._replace(op=Op.STATE, oldest=void, decision=self._decided)
        self.send(workers, state, self.state())
        # Rank 0's training step may have moved buffers since.
        self.send(workers, self._position, self._now.clone())

    def state(self) -> Tensor:
        """Parameters and buffers, then what the optimizer and the precision hold and validation has changed."""
        return whole_state(self._everything, self._optimizer, self._precision, self._attributes)

    def _needs_whole(self, worker: int) -> bool:
        whole = self._whole.get(worker)
        if whole is None or not whole.left:
            return False
        whole.left -= 1
        return True

    def _told(self, step: Step | None, attributes: dict[str, object] | None, validates: bool) -> Tensor:
        told: dict[str, object] = {"validates": True} if validates else {}
        if step is not None and step.settings != self._sent_settings:
            told["settings"] = self._sent_settings = step.settings
        if attributes:
            told["attributes"] = attributes
            self._attributes |= attributes
        return to_bytes(told) if told else EMPTY

    def _changed_buffers(self) -> Tensor:
        self._buffers.pack(self._now)
        if torch.equal(self._now, self._sent_buffers):
            return EMPTY
        self._sent_buffers = self._now.clone()  # what is on its way must stay as it is
        return self._sent_buffers
