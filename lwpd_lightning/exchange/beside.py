"""What rank 0 waits for beside codewords: what senders remember, for a checkpoint, and shares of a validation.

What else comes meanwhile is put back: it belongs to the open update, whose version rank 0 has yet to reach.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksum, MoreThanData, from_bytes, to_bytes
from lwpd_lightning.links.header import Header, Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import LinkLost, Message
from lwpd_lightning.rule.membership import Membership, listed

log = logging.getLogger(__name__)

# How often it is looked whether shares have come.
_LOOK_S = 0.05

# What a sender's `state_dict` gave.
Memory = dict[str, Any]


class Memories:
    """Gathers what senders remember, and hands it out where a fit goes on; the other side is `follower.Follower`'s.

    Args:
        hub: links to the workers.
        members: says who counts.
        publication: what is sent over the links.
        messages: reads this fit's messages.
    """

    def __init__(self, hub: Hub, members: Membership, publication: Publication, messages: Messages) -> None:
        self._hub, self._members, self._publication, self._messages = hub, members, publication, messages
        self._aside: list[Message | LinkLost] = []

    def hand_out(self, memories: Mapping[int, Memory]) -> None:
        """Let workers go on with these, before the first version is published."""
        for worker in sorted(self._members.present & memories.keys()):
            header = self._publication.header(Op.MEMORY)
            self._publication.send([worker], header, to_bytes(memories[worker]))

    def gather(self, version: int, patience_s: float) -> dict[int, Memory]:
        """What the workers that count remember where the model is at ``version``, the one published last.

        One after another, so that what comes at a time is one memory. Who is lost, or does not answer within
        ``patience_s`` seconds, is left out, which is said.
        """
        own = self._members.own
        told, silent = dict[int, Memory](), []
        try:
            for worker in sorted(self._members.live - {own}):
                memory = self._ask(worker, version, time.monotonic() + patience_s)
                if memory is None:
                    silent.append(worker)
                else:
                    told[worker] = memory
        finally:
            self._hub.put_back(self._aside)
            self._aside = []
        if silent:
            log.warning(
                "The checkpoint lacks what workers %s remember of codewords, who were lost or have not told in %.3g s: "
                "where a run goes on from it, they begin anew", listed(silent), patience_s,
            )  # fmt: skip
        return told

    def _ask(self, worker: int, version: int, until: float) -> Memory | None:
        if worker in _lost(self._aside):
            return None
        version -= worker in self._publication.awaiting  # it hears of the newest once rank 0 is there
        self._publication.send([worker], self._publication.header(Op.MEMORY, version))
        while (left := until - time.monotonic()) > 0 and worker not in self._hub.refused:
            for event in self._hub.events(left):
                memory = self._read(event, worker, version)
                if memory is not None:
                    return memory
                self._aside.append(event)
                if worker in _lost([event]):
                    return None
        return None

    def _read(self, event: Message | LinkLost, worker: int, version: int) -> Memory | None:
        """The worker's answer; None where the event is another."""
        if isinstance(event, LinkLost) or event.worker != worker:
            return None
        try:
            header, payload, _ = self._messages.read(event.frames)
            asked = header.op is Op.MEMORY and header.worker == worker and header.version == version
            if not asked or not self._members.holds(worker, header.incarnation):
                return None
            memory = from_bytes(payload, torch.device("cpu"))
        except (ProtocolError, MoreThanData):
            return None  # whoever reads it next says whose it is
        return memory if isinstance(memory, dict) else None


class Shares:
    """Takes what workers' shares of a validation came to, which they tell by themselves.

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
            left = until - time.monotonic()
            if not (wanted & self._members.live) - there - _lost(aside) or left <= 0:
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


def _lost(events: Collection[Message | LinkLost]) -> set[int]:
    return {event.worker for event in events if isinstance(event, LinkLost) and event.used}
