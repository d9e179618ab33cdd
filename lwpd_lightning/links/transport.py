"""What both ends of a ZeroMQ link need: bytes, heartbeats, ends. Knows nothing of gradients.

The coordinator owns one ROUTER socket (`hub.Hub`), each worker one DEALER (`spoke.Spoke`); workers that share no memory
have the same among each other, one inbox and a link to every other inbox (`mesh.WorkerLinks`). Every link is
CURVE-encrypted under keys derived from the run's key, and a peer is known by the key it proved, never by what a message
claims. A link that ends (process gone, host silent for longer than the heartbeat allows) is reported once, as a
`LinkLost`.

What waits for a process that reads nothing for long is bounded by credit, not by ZeroMQ's receive queues: a full one
takes nothing more off the network, heartbeats included, so that the link of a slow process would end as if its host
were silent (and libzmq 4.3.5 aborts a process whose peer goes away meanwhile).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq

Payload = bytes | memoryview

LINGER_MS = 1000
READING = b"lwpd: is reading"  # a worker's message of this frame alone: count anew what it has not read
_SMALL_BYTES = 1 << 16
_WATCHED = itertools.count()


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


def watched(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Where ZeroMQ tells of a socket's links.

    Without a bound: where nobody reads for long, a full queue would hold ZeroMQ's own thread up, heartbeats and all.
    """
    # By number: a socket may be given the identity of one that was closed, whose address ZeroMQ has not let go of yet.
    address = f"inproc://links-of-{next(_WATCHED)}"
    socket.monitor(address, events)
    watching: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    watching.setsockopt(zmq.RCVHWM, 0)
    watching.connect(address)
    return watching


def send(socket: zmq.Socket[bytes], frames: Sequence[Payload]) -> None:
    """Queue a message, large frames as they lie; raises zmq.Again where there is no room."""
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        # Tracking a frame that ZeroMQ reads in place costs more than copying a small one.
        copy = len(frame) < _SMALL_BYTES
        socket.send(frame, zmq.NOBLOCK | (zmq.SNDMORE if number < last else 0), copy=copy)


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """The next message's frames; raises zmq.Again where none is there."""
    # Half the time of `recv_multipart`, which asks the socket, and not the frame, whether there are more.
    frames = [socket.recv(zmq.NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(copy=False))
    return frames


def end(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """End a context, within a bound."""
    # libzmq 4.3.5 sometimes waits for ever for a link that ended while its socket was closing (1 closing in 100 when
    # peers die at that moment, on a busy machine). Nothing is left to send after the linger, so nothing is lost.
    ending = threading.Thread(target=context.term, name="links-end", daemon=True)
    ending.start()
    ending.join(2 * LINGER_MS / 1000)


def configure(socket: zmq.Socket[bytes], heartbeat_s: float, queued: int) -> None:
    """Set what both ends of a link agree on, before it is bound or connected; the arguments are `hub.Hub`'s."""
    # A link is asked every sixth of it and ends four sixths after the first question that nothing answered, so that
    # silence is noticed before ``heartbeat_s`` is over, with the last sixth left to try again.
    beat_ms = max(1, int(heartbeat_s * 1000) // 6)
    socket.setsockopt(zmq.SNDHWM, 2 * queued)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, beat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * beat_ms)
    # Or the kernel asks ever more seldom where nobody answers, and a link that could stand again waits for a minute.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, max(1000, 6 * beat_ms))
    # Or links among many ranks that share few cores may be given up while they take turns to shake hands.
    socket.setsockopt(zmq.HANDSHAKE_IVL, max(socket.getsockopt(zmq.HANDSHAKE_IVL), int(heartbeat_s * 1000)))
    socket.setsockopt(zmq.IPV6, 1)
