"""The listening end of links: who is connected by which link, who reads, and which link has ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from lwpd_lightning.links.door import Door
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.rendezvous import endpoint, listen
from lwpd_lightning.links.room import KEPT_BY_LINKS, make_room
from lwpd_lightning.links.transport import (
    LINGER_MS,
    READING,
    LinkLost,
    Message,
    Payload,
    configure,
    end,
    receive,
    send,
    watched,
)

# Files that one worker's link to a hub takes, and those that its owner's link back takes beside.
_FILES_IN, _FILES_OUT = 1, 2
# Rank 0 serves the store too, to which each worker has a connection.
_FILES_STORE = 1
# Sockets that a context has beside links to other workers.
_SOCKETS = 64


class Hub:
    """The listening end of links: the coordinator's, or a worker's inbox.

    Args:
        run_key: the run's secret.
        workers: ids of the workers that may join.
        host: address to bind; loopback unless the run spans machines.
        heartbeat_s: a peer from which nothing at all came for this long is gone.
        max_message_bytes: longer messages end the link that sent them.
        queued: how many messages a worker reads before it says so; twice as many may be sent to it without that, and
            later ones are lost.
        owner: the worker whose inbox this is; None: the coordinator's.

    Raises:
        TooFewFiles: this process may not open as many files as links to all these workers need.

    Attributes:
        refused: workers that have missed something since their queue was full; whoever sends takes them out.
    """

    def __init__(
        self,
        run_key: RunKey,
        workers: Sequence[int],
        *,
        host: str,
        heartbeat_s: float,
        max_message_bytes: int,
        queued: int,
        owner: int | None = None,
    ) -> None:
        files = _FILES_IN + (_FILES_STORE if owner is None else _FILES_OUT)
        make_room(len(workers), files)
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, max(self.context.get(zmq.MAX_SOCKETS), len(workers) + _SOCKETS))
        self._by_key = {run_key.worker(worker).public.decode(): worker for worker in workers}
        self._auth = ThreadAuthenticator(self.context)
        self._auth.start()
        self._auth.configure_curve_callback("*", self)
        self.refused: set[int] = set()
        self._router = self.context.socket(zmq.ROUTER)
        self._most_unread, self._unread = 2 * queued, Counter[int]()  # sent to a worker since it last was reading
        configure(self._router, heartbeat_s, queued)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        keys = run_key.coordinator() if owner is None else run_key.worker(owner)
        self._router.curve_server = True
        self._router.curve_publickey, self._router.curve_secretkey = keys.public, keys.secret
        self._monitor = watched(self._router, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._door, self.port = self._listen(host)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._identity: dict[int, bytes] = {}  # of the link in use of each worker: its first, until it ends
        # Links are numbered, since the file descriptor by which ZeroMQ names one is the next one's as soon as it ends.
        self._accepted = 0
        self._link: dict[int, int] = {}  # file descriptor -> newest link on it
        self._owner: dict[int, tuple[int, bytes]] = {}  # link -> worker and its routing identity
        self._number: dict[bytes, int] = {}  # routing identity -> link
        self._standing: set[int] = set()  # links that have not ended
        self._ended: deque[int] = deque()  # links whose end is still to be reported
        self._put_back: deque[Message | LinkLost] = deque()

    def _listen(self, host: str) -> tuple[Door, int]:
        """Bind at any free port of ``host``, with a door."""
        with listen(host, 0) as listening:
            port = listening.getsockname()[1]
            door = Door(listening.fileno(), KEPT_BY_LINKS, "the exchange")
            self._router.setsockopt(zmq.USE_FD, listening.detach())  # which ZeroMQ closes
            self._router.bind(endpoint(host, port))
        return door, port

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a CURVE client may connect (called by pyzmq's authenticator): only this run's workers may."""
        return key.decode() in self._by_key

    def send(self, worker: int, frames: Sequence[Payload]) -> None:
        """Queue a message without waiting and without copying large frames, which must stay as they are meanwhile.

        Nothing is sent to a worker that has no link (`events` reports, or has reported, that it is lost) or whose queue
        is full, which is noted in `refused`.
        """
        if worker not in self._identity:
            return
        if self.reads(worker) and self._put(self._identity[worker], frames):
            self.sent(worker)
        else:
            self.refused.add(worker)

    def answer(self, link: int, frames: Sequence[Payload]) -> None:
        """Queue a short message on the link that one came on, whether or not it is in use; nothing if that ended."""
        if link in self._owner:
            self._put(self._owner[link][1], frames)

    def uses(self, worker: int, link: int) -> bool:
        """Whether this is the link on which the worker is sent to."""
        return link in self._owner and self._identity.get(worker) == self._owner[link][1]

    def has_link(self, worker: int) -> bool:
        """Whether something has come from a worker on a link that has not ended."""
        return worker in self._identity

    def adopt(self, worker: int, link: int) -> None:
        """Use this link for a worker from now on, and count anew what it has not read; nothing if that ended."""
        if link in self._owner and not self.uses(worker, link):
            self._identity[worker] = self._owner[link][1]
            self.renew(worker)

    def renew(self, worker: int) -> None:
        """Another process of the worker's comes: count anew what it has not read."""
        del self._unread[worker]
        self.refused.discard(worker)

    def _put(self, identity: bytes, frames: Sequence[Payload]) -> bool:
        """Whether there was room; a link that has ended swallows everything."""
        try:
            send(self._router, [identity, *frames])
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        return True

    def reads(self, worker: int) -> bool:
        """Whether a worker has read enough of what was sent to it that more may be."""
        return self._unread[worker] < self._most_unread

    def sent(self, worker: int) -> None:
        """Something was sent to a worker, be it on its link to this hub or on another that it answers for here."""
        self._unread[worker] += 1

    def events(self, timeout_s: float) -> Iterator[Message | LinkLost]:
        """Yield everything that is there, one at a time; wait for the first thing up to ``timeout_s`` seconds."""
        patience_s = 0 if self._put_back else timeout_s
        ready = [socket for socket, _ in self._poller.poll(max(0, int(patience_s * 1000)))]
        while self._put_back:
            yield self._put_back.popleft()
        if self._monitor in ready:
            self._watch_links()
        if ready:  # also where only an end is reported, before which something may have come just now
            while (message := self._receive()) is not None:
                if message.frames == [READING]:
                    self._unread[message.worker] = 0
                else:
                    yield message
        # Reported last, of links that had ended before: all that a dying worker managed to send still counts.
        while self._ended:
            link = self._ended.popleft()
            if link in self._owner:
                yield self._lost(link)

    def put_back(self, events: Iterable[Message | LinkLost]) -> None:
        """What was read and is for whoever reads next: `events` yields it first."""
        self._put_back.extend(events)

    def _lost(self, link: int) -> LinkLost:
        worker, identity = self._owner.pop(link)
        del self._number[identity]
        used = self._identity.get(worker) == identity
        others = [other for owner, other in self._owner.values() if owner == worker]
        if used:
            del self._identity[worker]
            self.renew(worker)
            if others:
                self._identity[worker] = others[-1]
        return LinkLost(worker, used, stands=bool(others))

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll when waiting for more than `events`."""
        return self._router, self._monitor

    def _watch_links(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._accepted += 1
                self._link[event["value"]] = self._accepted
                self._standing.add(self._accepted)
            else:
                self._ended.append(self._link[event["value"]])
                self._standing.discard(self._link[event["value"]])

    def _receive(self) -> Message | None:
        try:
            identity, *frames = receive(self._router)
        except zmq.Again:
            return None
        worker = self._by_key[str(frames[0].get("User-Id"))]
        if identity.bytes not in self._number:  # the first message of a link
            self._watch_links()
            link = self._link[frames[0].get(zmq.SRCFD)]
            self._owner[link], self._number[identity.bytes] = (worker, identity.bytes), link
            self._identity.setdefault(worker, identity.bytes)
            if link not in self._standing and link not in self._ended:
                self._ended.append(link)  # which was seen before anybody knew whose it was
        return Message(worker, [frame.buffer for frame in frames], self._number[identity.bytes])

    def close(self) -> None:
        """Close every link, giving what is queued a second to leave."""
        deadline = time.monotonic() + LINGER_MS / 1000
        # Not by ZeroMQ's linger, in which nothing is read any more.
        while any(self._unread[worker] for worker in self._identity) and (left := deadline - time.monotonic()) > 0:
            for _ in self.events(left):
                pass
        self._door.close()
        self._router.disable_monitor()
        self._monitor.close(0)
        self._router.close(0)
        self._auth.stop()
        end(self.context)
