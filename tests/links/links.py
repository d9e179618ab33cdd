"""Ends of links for tests: in this process, in processes of their own, and intruders. Every wait is bounded."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import zmq
from zmq.utils.monitor import recv_monitor_message

from lwpd_lightning.links.header import COORDINATOR
from lwpd_lightning.links.mesh import WorkerLinks
from lwpd_lightning.links.rendezvous import LOOPBACK
from lwpd_lightning.links.spoke import Spoke
from lwpd_lightning.links.transport import Message

DEADLINE_S = 20.0
MAX_BYTES = 1 << 20
QUEUED = 100


def events_until(hub, wanted):
    """Everything that the hub reports up to the first event for which ``wanted`` holds, that one included."""
    seen = []
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for event in hub.events(0.2):
            seen.append((event.worker, [bytes(f) for f in event.frames]) if isinstance(event, Message) else event)
            if wanted(seen[-1]):
                return seen
    raise AssertionError(f"not seen in {DEADLINE_S:g} s; there came {seen}")


def address(hub):
    return f"tcp://{LOOPBACK}:{hub.port}"


def spoke(run_key, worker, hub, heartbeat_s=5.0):
    return Spoke(run_key, worker, address(hub), heartbeat_s=heartbeat_s, max_message_bytes=MAX_BYTES, queued=QUEUED)


def links(run_key, worker, hub, heartbeat_s=5.0, peers=(), queued=QUEUED, made=WorkerLinks):
    return made(
        run_key,
        worker,
        address(hub),
        peers=peers,
        heartbeat_s=heartbeat_s,
        max_message_bytes=MAX_BYTES,
        queued=queued,
    )


def taken(spoke):
    """The frames of the next message."""
    deadline = time.monotonic() + DEADLINE_S
    while (frames := spoke.take()) is None:
        left = deadline - time.monotonic()
        assert left > 0, f"nothing came in {DEADLINE_S:g} s"
        zmq.select([spoke.sockets[0]], [], [], left)
    return [bytes(frame) for frame in frames]


class Peer:
    """A worker's end of a link in a process of its own, which does what it is told through a pipe.

    Fork it before the hub is made, so that it does not hold the hub's sockets open.
    """

    def __init__(self):
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_obey, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def connect(self, run_key, worker, hub, heartbeat_s=5.0):
        self._tell("connect", run_key, worker, hub.port, heartbeat_s)

    def send(self, frames):
        self._tell("send", frames)

    def receive(self):
        return self._tell("receive")

    def signal(self, number):
        os.kill(self._process.pid, number)

    def end(self):
        self._process.kill()
        self._process.join(DEADLINE_S)

    def _tell(self, verb, *args):
        self._pipe.send((verb, *args))
        assert self._pipe.poll(DEADLINE_S), f"the peer did not {verb}"
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _obey(pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = None
    while True:
        verb, *args = pipe.recv()
        answer = None
        try:
            if verb == "connect":
                run_key, worker, port, heartbeat_s = args
                link = links(run_key, worker, SimpleNamespace(port=port), heartbeat_s)
            elif verb == "send":
                link.send(COORDINATOR, *args)
            else:
                answer = [bytes(frame) for frame in link.receive(DEADLINE_S).frames]
        except Exception as error:
            answer = error
        pipe.send(answer)


class Intruder:
    """A DEALER with any security or none, which notes what becomes of its link."""

    def __init__(self, hub, *, curve=None, server_key=None, routing_id=None):
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        if routing_id is not None:
            self.socket.routing_id = routing_id
        if curve is not None:
            self.socket.curve_serverkey = server_key
            self.socket.curve_publickey, self.socket.curve_secretkey = curve.public, curve.secret
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_ALL)
        self.socket.connect(address(hub))

    def wait_until_refused(self):
        """Wait until the hub has ended the link; a completed handshake is an error."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self._monitor.poll(200):
                event = recv_monitor_message(self._monitor)["event"]
                assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED, "the hub let it in"
                if event == zmq.EVENT_DISCONNECTED:
                    return
        raise AssertionError("the hub neither let it in nor ended the link")

    def close(self):
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
        self._context.term()
