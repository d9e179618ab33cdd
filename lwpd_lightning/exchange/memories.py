"""What workers' senders remember of codewords: gathered by rank 0 for a checkpoint, and handed out where one begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import MoreThanData, from_bytes, to_bytes
from lwpd_lightning.links.header import Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import LinkLost, Message
from lwpd_lightning.rule.membership import Membership, listed

log = logging.getLogger(__name__)

# What a sender's `state_dict` gave.
Memory = dict[str, Any]


class Memories:
    """Rank 0's side; on workers it is `follower.Follower`'s.

    What else comes while it waits is put back: it belongs to the open update, whose version rank 0 has yet to reach.

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
        if self._lost_among(self._aside, worker):
            return None
        version -= worker in self._publication.awaiting  # it hears of the newest once rank 0 is there
        self._publication.send([worker], self._publication.header(Op.MEMORY, version))
        while (left := until - time.monotonic()) > 0 and worker not in self._hub.refused:
            for event in self._hub.events(left):
                memory = self._read(event, worker, version)
                if memory is not None:
                    return memory
                self._aside.append(event)
                if self._lost_among([event], worker):
                    return None
        return None

    @staticmethod
    def _lost_among(events: Collection[Message | LinkLost], worker: int) -> bool:
        return any(isinstance(event, LinkLost) and event.used and event.worker == worker for event in events)

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
