"""A worker's end of a link to a hub."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.transport import LINGER_MS, READING, Payload, configure, end, receive, send, watched


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
        configure(self._dealer, heartbeat_s, queued)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        keys = run_key.worker(worker)
        self._dealer.curve_serverkey = (run_key.coordinator() if to is None else run_key.worker(to)).public
        self._dealer.curve_publickey, self._dealer.curve_secretkey = keys.public, keys.secret
        # The end of a link to a worker is seen at its other end: a monitor would take files and sockets for each.
        self._monitor = watched(self._dealer, zmq.EVENT_DISCONNECTED) if to is None else None
        self._dealer.connect(address)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll when waiting for `take` to give something, or for the link's end."""
        return (self._dealer,) if self._monitor is None else (self._dealer, self._monitor)

    @property
    def ended(self) -> bool:
        """Whether the link has ended at least once; not known of a link to a worker."""
        return self._monitor is not None and bool(self._monitor.poll(0))

    def send(self, frames: Sequence[Payload]) -> bool:
        """Queue a message without waiting and without copying large frames, which must stay as they are meanwhile.

        Any frames but `READING` alone. Returns whether there was room: a refused link has none, nor has a very slow
        one.
        """
        try:
            send(self._dealer, frames)
        except zmq.Again:
            return False
        return True

    def say_reading(self) -> None:
        """Let the hub count anew what this worker has not read."""
        self.send([READING])

    def take(self) -> list[memoryview] | None:
        """The next message's frames; None where none is there."""
        try:
            return [frame.buffer for frame in receive(self._dealer)]
        except zmq.Again:
            return None

    def close(self, *, linger: bool = True) -> None:
        """Close the link, giving what is queued a second to leave, or none."""
        if self._monitor is not None:
            self._dealer.disable_monitor()
            self._monitor.close(0)
        self._dealer.close(LINGER_MS if linger else 0)
        if self._own is not None:
            end(self._own)
