"""A worker's links: one to the coordinator and, among workers that share no memory, those to other workers.

Each worker has an inbox, to which whoever has something for it opens a link: what one sends to another passes no third.
Among many workers few have something for each other, since few add up: a link opens with the first message.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import zmq

from lwpd_lightning.links.header import COORDINATOR
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.rendezvous import endpoint
from lwpd_lightning.links.spoke import Spoke
from lwpd_lightning.links.transport import LinkLost, Message, Payload

# How often it is looked whether to go on waiting.
_LOOK_S = 0.2


class CoordinatorLost(RuntimeError):
    """The link to the coordinator ended."""


class ToldToEnd(SystemExit):
    """While the coordinator was away, this process was told to end, by a signal that the exit code names."""


@dataclass(frozen=True)
class Missed:
    """Another worker has read again: before that its queue was full, and what was sent to it is lost."""

    worker: int


class WorkerLinks:
    """All links of one worker.

    Args:
        run_key: the run's secret.
        worker: whose links these are.
        address: the coordinator's ("tcp://host:port").
        peers: the other workers that may have something for this one; none where they share memory.
        heartbeat_s: a peer from which nothing at all came for this long is gone.
        max_message_bytes: longer messages end the link.
        queued: how many messages a worker reads before it says so; twice as many may be sent to it without that, and
            later ones are lost.

    Attributes:
        peers: as given.
        look: called now and then while `receive` waits, and may raise what ends that; None: nothing is.
        address: of this worker's inbox; empty where it has none.
    """

    def __init__(
        self,
        run_key: RunKey,
        worker: int,
        address: str,
        *,
        peers: Sequence[int],
        heartbeat_s: float,
        max_message_bytes: int,
        queued: int,
    ) -> None:
        self._run_key, self._worker, self.peers = run_key, worker, tuple(peers)
        self._heartbeat_s, self._max_message_bytes, self._queued = heartbeat_s, max_message_bytes, queued
        self._inbox: Hub | None = None
        self.address = ""
        self.look: Callable[[], None] | None = None
        if peers:
            host = _own_address(address)
            self._inbox = Hub(
                run_key,
                peers,
                host=host,
                heartbeat_s=heartbeat_s,
                max_message_bytes=max_message_bytes,
                queued=queued,
                owner=worker,
            )
            self.address = endpoint(host, self._inbox.port)
        self._coordinator_address = address
        self._addresses: dict[int, str] = {}  # of the inboxes of workers that are in
        self._spokes: dict[int, Spoke] = {}  # to those that something was sent to
        self._awaited: dict[int, float] = {}  # by when a link from a worker is to stand that has none
        self._refusing: set[int] = set()  # workers that have had no room for what was sent to them
        self._read = Counter[int]()  # messages from each since it was told that this worker reads
        self._arrived: deque[Message | LinkLost | Missed] = deque()
        self._poller = zmq.Poller()
        for polled in self._inbox.sockets if self._inbox is not None else ():
            self._poller.register(polled, zmq.POLLIN)
        self._open()

    def _open(self) -> None:
        self._coordinator = self._spoke(self._coordinator_address, None)
        for polled in self._coordinator.sockets:
            self._poller.register(polled, zmq.POLLIN)

    def renew(self) -> None:
        """Close all links but the inbox, with all that is still on them, and open another to the coordinator."""
        for worker in list(self._addresses):
            self.disconnect(worker)
        for polled in self._coordinator.sockets:
            self._poller.unregister(polled)
        self._coordinator.close(linger=False)
        self._open()
        self._arrived = deque(event for event in self._arrived if event.worker != COORDINATOR)

    def introduce(self, addresses: Mapping[int, str]) -> None:
        """Where the inboxes of these workers are; a link that there was to an older process of one's is closed."""
        assert self._inbox is not None or not addresses
        for worker, address in addresses.items():
            self.disconnect(worker)
            self._inbox.renew(worker)  # type: ignore[union-attr]
            self._addresses[worker] = address

    def disconnect(self, worker: int) -> None:
        """A worker is an erasure: close the link to it, with all that is still on it."""
        self._refusing.discard(worker)
        self._addresses.pop(worker, None)
        self._awaited.pop(worker, None)
        if worker in self._spokes:
            self._spokes.pop(worker).close(linger=False)

    def expect(self, workers: Iterable[int]) -> None:
        """Something is to come from these workers: `receive` gives LinkLost where no link from one stands in time."""
        until = time.monotonic() + self._heartbeat_s
        for worker in workers:
            if worker in self._addresses and not self._inbox.has_link(worker):  # type: ignore[union-attr]
                self._awaited.setdefault(worker, until)

    @property
    def waiting(self) -> bool:
        """Whether `receive` would give something at once."""
        self._take()
        return bool(self._arrived)

    def send(self, to: int, frames: Sequence[Payload]) -> None:
        """Queue a message to another worker, or to COORDINATOR, without copying large frames.

        It opens the link to a worker where there is none, and queues until that stands. A worker that nobody has told
        of misses it; so does one whose queue is full, and `receive` gives Missed when there is room again. Frames must
        stay as they are until the peer has read them.

        Raises:
            CoordinatorLost: the coordinator refused this worker's key, and there is no link to queue for.
        """
        if to != COORDINATOR:
            if to not in self._addresses:
                return
            assert self._inbox is not None
            if not self._inbox.reads(to):
                self._refusing.add(to)
            elif self._link_to(to).send(frames):
                self._inbox.sent(to)
        elif not self._coordinator.send(frames):
            raise CoordinatorLost("the coordinator refused the link, or reads nothing")

    def receive(self, timeout_s: float | None) -> Message | LinkLost | Missed:
        """The next message, the end of a link from another worker, or that one has missed something.

        Args:
            timeout_s: None: wait as long as the link to the coordinator lives, which the heartbeat watches.

        Raises:
            CoordinatorLost: that link ended, or nothing came in time.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._arrived:
            if self.look is not None:
                self.look()
            self._poller.poll(self._patience_ms(until))
            ended = self._coordinator.ended  # asked first: what was sent before the end still counts
            self._take()
            if ended and not self._arrived:
                raise CoordinatorLost("the link to the coordinator ended")
            if until is not None and time.monotonic() >= until and not self._arrived:
                raise CoordinatorLost(f"nothing came from the coordinator for {timeout_s:g} s")
        return self._arrived.popleft()

    def _patience_ms(self, until: float | None) -> int | None:
        """How long there is nothing to do but to wait for a message."""
        now = time.monotonic()
        bounds = [*([] if until is None else [until]), *([] if self.look is None else [now + _LOOK_S])]
        first = min([*bounds, *self._awaited.values()], default=None)
        return None if first is None else max(0, math.ceil(1000 * (first - now)))

    def _take(self) -> None:
        """Move what the sockets hold to the queue: not all that they report, such as a stranger's knock, is for us."""
        while (frames := self._coordinator.take()) is not None:
            self._arrived.append(Message(COORDINATOR, frames))
            self._count(COORDINATOR)
        if self._inbox is None:
            return
        for event in self._inbox.events(0.0):
            self._arrived.append(event)
            if event.worker in self._addresses:
                self._count(event.worker, renewed=isinstance(event, LinkLost))
        for worker in sorted(filter(self._inbox.reads, self._refusing)):
            self._refusing.discard(worker)
            self._arrived.append(Missed(worker))

        for worker, until in list(self._awaited.items()):
            if self._inbox.has_link(worker):
                del self._awaited[worker]
            elif time.monotonic() >= until:
                del self._awaited[worker]
                self._arrived.append(LinkLost(worker, used=True))

    def _count(self, worker: int, *, renewed: bool = False) -> None:
        """Tell a worker in time that this one reads; also where a link ended, on which something may be lost."""
        self._read[worker] += 1
        if renewed or self._read[worker] >= self._queued:
            self._read[worker] = 0
            (self._coordinator if worker == COORDINATOR else self._link_to(worker)).say_reading()

    def _link_to(self, worker: int) -> Spoke:
        if worker not in self._spokes:
            self._spokes[worker] = self._spoke(self._addresses[worker], worker)
        return self._spokes[worker]

    def close(self) -> None:
        """Close every link, giving what is queued a second to leave."""
        for spoke in (*self._spokes.values(), self._coordinator):
            spoke.close()
        if self._inbox is not None:
            self._inbox.close()

    def _spoke(self, address: str, to: int | None) -> Spoke:
        return Spoke(
            self._run_key,
            self._worker,
            address,
            heartbeat_s=self._heartbeat_s,
            max_message_bytes=self._max_message_bytes,
            queued=self._queued,
            to=to,
            context=self._inbox.context if self._inbox is not None else None,
        )


def _own_address(address: str) -> str:
    """This machine's numeric address on the way to ``address``: where the others can reach it too."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host.strip("[]"), int(port)))  # sends nothing: asks the routing table
        return str(probe.getsockname()[0])
