"""ZeroMQ links between ranks: bytes, heartbeats, keys. Knows nothing of gradients.

The coordinator owns one ROUTER socket (`Hub`), each worker one DEALER (`Spoke`); workers that share no memory have the
same among each other, one inbox and a link to every other inbox (`mesh.WorkerLinks`). Every link is CURVE-encrypted
under keys derived from the run's key, and a peer is known by the key it proved, never by what a message claims. A link
that ends (process gone, host silent for longer than the heartbeat allows) is reported once, as a `LinkLost`.

What waits for a process that reads nothing for long is bounded by credit, not by ZeroMQ's receive queues: a full one
takes nothing more off the network, heartbeats included, so that the link of a slow process would end as if its host
were silent (and libzmq 4.3.5 aborts a process whose peer goes away meanwhile).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from lwpd_lightning.links.keys import RunKey

Payload = bytes | memoryview

_LINGER_MS = 1000
_SMALL_BYTES = 1 << 16
READING = b"lwpd: is reading"  # a worker's message of this frame alone: count anew what it has not read


@dataclass(frozen=True)
class Message:
    """A message from an authenticated peer, on one of its links; frames are views of ZeroMQ's memory, not copies."""

    worker: int
    frames: list[memoryview]
    link: int = field(default=0, compare=False)


@dataclass(frozen=True)
class LinkLost:
    """A worker's link ended: its process died, its host fell silent or the network broke.

    Attributes:
        worker: whose.
        used: it was the link that the worker is sent to on.
        stands: another link of the worker's is there.
    """

    worker: int
    used: bool = True
    stands: bool = False


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
        self.context = zmq.Context()
        self._by_key = {run_key.worker(worker).public.decode(): worker for worker in workers}
        self._auth = ThreadAuthenticator(self.context)
        self._auth.start()
        self._auth.configure_curve_callback("*", self)
        self.refused: set[int] = set()
        self._router = self.context.socket(zmq.ROUTER)
        self._most_unread, self._unread = 2 * queued, Counter[int]()  # sent to a worker since it last was reading
        _configure(self._router, heartbeat_s, queued)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        keys = run_key.coordinator() if owner is None else run_key.worker(owner)
        self._router.curve_server = True
        self._router.curve_publickey, self._router.curve_secretkey = keys.public, keys.secret
        self._monitor = _watched(self._router, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.port = self._router.bind_to_random_port(f"tcp://{host}")
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
            _send(self._router, [identity, *frames])
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
        ready = [socket for socket, _ in self._poller.poll(max(0, int(timeout_s * 1000)))]
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
            identity, *frames = _receive(self._router)
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
        deadline = time.monotonic() + _LINGER_MS / 1000
        # Not by ZeroMQ's linger, in which nothing is read any more.
        while any(self._unread[worker] for worker in self._identity) and (left := deadline - time.monotonic()) > 0:
            for _ in self.events(left):
                pass
        self._router.disable_monitor()
        self._monitor.close(0)
        self._router.close(0)
        self._auth.stop()
        _end(self.context)


class Spoke:
    """A worker's end of its link to a hub at ``address`` ("tcp://host:port").

    Args:
        run_key: the run's secret.
        worker: who connects.
        address: of the hub.
        heartbeat_s: a hub from which nothing at all came for this long is gone.
        max_message_bytes: longer messages end the link.
        queued: twice as many messages may wait for the network; later ones are lost.
        to: the worker whose inbox the hub is; None: the coordinator's.
        context: the ZeroMQ context to live in, which somebody else ends; None: one of its own.
    """

    def __init__(
        self,
        run_key: RunKey,
        worker: int,
        address: str,
        *,
        heartbeat_s: float,
        max_message_bytes: int,
        queued: int,
        to: int | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._own = zmq.Context() if context is None else None
        self._dealer = (context or self._own).socket(zmq.DEALER)  # type: ignore[union-attr]
        _configure(self._dealer, heartbeat_s, queued)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        keys = run_key.worker(worker)
        self._dealer.curve_serverkey = (run_key.coordinator() if to is None else run_key.worker(to)).public
        self._dealer.curve_publickey, self._dealer.curve_secretkey = keys.public, keys.secret
        self._monitor = _watched(self._dealer, zmq.EVENT_DISCONNECTED)
        self._dealer.connect(address)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll when waiting for `take` to give something, or for the link's end."""
        return self._dealer, self._monitor

    @property
    def ended(self) -> bool:
        """Whether the link has ended at least once."""
        return bool(self._monitor.poll(0))

    def send(self, frames: Sequence[Payload]) -> bool:
        """Queue a message without waiting and without copying large frames, which must stay as they are meanwhile.

        Any frames but `READING` alone. Returns whether there was room: a refused link has none, nor has a very slow
        one.
        """
        try:
            _send(self._dealer, frames)
        except zmq.Again:
            return False
        return True

    def say_reading(self) -> None:
        """Let the hub count anew what this worker has not read."""
        self.send([READING])

    def take(self) -> list[memoryview] | None:
        """The next message's frames; None where none is there."""
        try:
            return [frame.buffer for frame in _receive(self._dealer)]
        except zmq.Again:
            return None

    def close(self, *, linger: bool = True) -> None:
        """Close the link, giving what is queued a second to leave, or none."""
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(_LINGER_MS if linger else 0)
        if self._own is not None:
            _end(self._own)


def _watched(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Where ZeroMQ tells of a socket's links.

    Without a bound: where nobody reads for long, a full queue would hold ZeroMQ's own thread up, heartbeats and all.
    """
    address = f"inproc://links-of-{id(socket)}"
    socket.monitor(address, events)
    watching: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    watching.setsockopt(zmq.RCVHWM, 0)
    watching.connect(address)
    return watching


def _send(socket: zmq.Socket[bytes], frames: Sequence[Payload]) -> None:
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        # Tracking a frame that ZeroMQ reads in place costs more than copying a small one.
        copy = len(frame) < _SMALL_BYTES
        socket.send(frame, zmq.NOBLOCK | (zmq.SNDMORE if number < last else 0), copy=copy)


def _receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    # Half the time of `recv_multipart`, which asks the socket, and not the frame, whether there are more.
    frames = [socket.recv(zmq.NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(copy=False))
    return frames


def _end(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    # libzmq 4.3.5 sometimes waits for ever for a link that ended while its socket was closing (1 closing in 100 when
    # peers die at that moment, on a busy machine). Nothing is left to send after the linger, so nothing is lost.
    ending = threading.Thread(target=context.term, name="links-end", daemon=True)
    ending.start()
    ending.join(2 * _LINGER_MS / 1000)


def _configure(socket: zmq.Socket[bytes], heartbeat_s: float, queued: int) -> None:
    # A link is asked every sixth of it and ends four sixths after the first question that nothing answered, so that
    # silence is noticed before ``heartbeat_s`` is over, with the last sixth left to try again.
    beat_ms = max(1, int(heartbeat_s * 1000) // 6)
    socket.setsockopt(zmq.SNDHWM, 2 * queued)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, beat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * beat_ms)
    # Or the kernel asks ever more seldom where nobody answers, and a link that could stand again waits for a minute.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, max(1000, 6 * beat_ms))
    socket.setsockopt(zmq.IPV6, 1)
