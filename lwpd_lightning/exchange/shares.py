"""What workers' shares of a validation came to, on rank 0: which are there, and whose will not come."""

from __future__ import annotations

import time
from collections.abc import Iterable

from torch import Tensor

from lwpd_lightning.exchange.state import Checksum
from lwpd_lightning.links.header import Header, Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import LinkLost, Message
from lwpd_lightning.rule.membership import Membership

_LOOK_S = 0.05


class Shares:
    """Takes what workers tell of their shares; all else that comes while rank 0 waits for them stays for later.

    Args:
        hub: links to the workers.
        messages: reads this fit's messages.
        members: who lives.
    """

    def __init__(self, hub: Hub, messages: Messages, members: Membership) -> None:
        self._hub, self._messages, self._members = hub, messages, members
        self._told: dict[int, tuple[Header, Tensor]] = {}

    def take(self, header: Header, payload: Tensor) -> None:
        """A worker's share is there."""
        self._told[header.worker] = header, payload

    def wait(self, workers: Iterable[int], version: int, checksum: Checksum, seconds: float) -> dict[int, Tensor]:
        """The shares of those workers, as far as they come in time, of the model at a version with this checksum."""
        wanted, until = set(workers), time.monotonic() + seconds
        aside: list[Message | LinkLost] = []
        while True:
            there = {worker for worker in wanted if worker in self._told and self._told[worker][0].version == version}
            ended = {event.worker for event in aside if isinstance(event, LinkLost)}
            left = until - time.monotonic()
            if not (wanted & self._members.live) - there - ended or left <= 0:
                break
            for event in self._hub.events(min(left, _LOOK_S)):
                if not self._took(event):
                    aside.append(event)
        self._hub.put_back(aside)
        told = {worker: self._told.pop(worker) for worker in there}
        return {
            worker: payload
            for worker, (header, payload) in told.items()
            if (header.checksum, header.rest) == (checksum.trainable, checksum.rest)
        }

    def _took(self, event: Message | LinkLost) -> bool:
        if isinstance(event, LinkLost):
            return False
        try:
            header, payload, _ = self._messages.read(event.frames)
        except ProtocolError:
            return False  # whoever reads it next deals with it
        held = header.worker == event.worker and self._members.holds(event.worker, header.incarnation)
        if not held or header.op is not Op.VALIDATED:
            return False
        self.take(header, payload)
        return True
