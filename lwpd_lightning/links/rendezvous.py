"""Where the ranks of a fit find each other: torch's TCPStore holds the coordinator's address and the run's seed.

Nothing secret and no tensor passes it. Anybody who reaches it may write to it: every value is signed under the run's
key for the name that it has, and one that is not is as good as none, so that whoever waits for it goes on waiting. A
value of the same name that was written over may be put back.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import time
import weakref
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined]

from lwpd_lightning.links.door import Door
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.room import KEPT_BY_STORE

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# Between two looks at a value that somebody else wrote.
_LOOK_AGAIN_S = 0.2
_SIGNATURE = 64  # hexadecimal digits


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at a numeric address; port 0: any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    # All workers knock at once, and who is turned away knocks again a second later; so many silent strangers wait here.
    listener.listen(4096)
    return listener


def resolve(host: str) -> str:
    """The numeric address of a host name, the first that the system knows."""
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


def endpoint(host: str, port: int | str) -> str:
    """A numeric address and a port as ZeroMQ writes them.

    >>> endpoint("::1", 5000)
    'tcp://[::1]:5000'
    """
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class Rendezvous:
    """One fit's meeting point.

    Args:
        store: a connected TCPStore.
        generation: which fit of the run this is; the keys of one fit are never read by another.
        timeout_s: how long to wait for the coordinator.
        key: signs all that is written.
        attempt: which start of the job this is, where a store outlives one: torchrun's agent keeps what ranks that it
            has started before have left there.
        door: of the store, where it is served here; closed with it.
    """

    def __init__(
        self,
        store: TCPStore,
        generation: int,
        timeout_s: float,
        key: RunKey,
        attempt: str = "0",
        door: Door | None = None,
    ) -> None:
        self._store, self._key, self._door = store, key, door
        if door is not None:
            weakref.finalize(store, door.close)
        self._attempt, self._root = attempt, f"lwpd/{attempt}"
        self._prefix = f"{self._root}/{generation}"
        self._timeout = timedelta(seconds=timeout_s)

    @classmethod
    def host(cls, listener: socket.socket, generation: int, timeout_s: float, key: RunKey) -> Rendezvous:
        """Serve the store on ``listener``, which it takes over."""
        host, port = listener.getsockname()[:2]
        door = Door(listener.fileno(), KEPT_BY_STORE, "the store")
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
        )
        return cls(store, generation, timeout_s, key, door=door)

    @classmethod
    def join(
        cls, host: str, port: int, generation: int, timeout_s: float, key: RunKey, attempt: str = "0"
    ) -> Rendezvous:
        """Connect to the store that rank 0 (or the launcher's agent) serves; raises TimeoutError where none is."""
        timeout = timedelta(seconds=timeout_s)
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        except DistNetworkError as error:
            raise TimeoutError(f"rank 0 did not open its store at {host} port {port} within {timeout_s:g} s") from error
        return cls(store, generation, timeout_s, key, attempt)

    def of(self, generation: int) -> Rendezvous:
        """The same store, for another fit."""
        return Rendezvous(self._store, generation, self._timeout.total_seconds(), self._key, self._attempt)

    def announce(self, address: str, seed: int, segment: int = 0) -> None:
        """Tell the workers where the coordinator of the fit's exchange number ``segment`` listens; again at will.

        Args:
            address: "tcp://host:port".
            seed: keys the batches.
            segment: a fit begins another exchange whenever what it trains changes.
        """
        self._set(f"{self._prefix}/coordinator/{segment}", f"{seed} {address}")
        self._set(f"{self._prefix}/newest", str(segment))

    @property
    def newest(self) -> int:
        """The number of the fit's newest exchange, which a process that comes late takes part in."""
        return int(self._wait_for(f"{self._prefix}/newest", "start its fit"))

    def tell(self, entry: int, outcome: str) -> None:
        """Tell the other ranks what call number ``entry`` of the job led to."""
        self._set(f"{self._root}/entry/{entry}", outcome)

    def told(self, entry: int, rank: int) -> str:
        """Wait until rank 0's call number ``entry`` is over, and give what it led to.

        Raises:
            TimeoutError: it was not over in time.
            ConnectionError: rank 0 ended before it was.
        """
        outcome = self._wait_for(f"{self._root}/entry/{entry}", f"end its call number {entry}")
        self._set(f"{self._root}/read/{entry}/{rank}", "")
        return outcome

    def await_readers(self, entry: int, ranks: Sequence[int], timeout_s: float) -> None:
        """Wait until ``ranks`` have read what call number ``entry`` led to, or for ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError, ConnectionError):
            for rank in ranks:
                self._wait_for(f"{self._root}/read/{entry}/{rank}", "read it", max(0.001, deadline - time.monotonic()))

    def coordinator(self, segment: int = 0) -> tuple[str, int]:
        """Wait for the (address, seed) of the coordinator of an exchange.

        Raises:
            TimeoutError: rank 0 announced nothing in time.
            ConnectionError: rank 0's store is gone.
        """
        seed, address = self._wait_for(f"{self._prefix}/coordinator/{segment}", "start its fit").split(" ", 1)
        return address, int(seed)

    def _set(self, name: str, value: str) -> None:
        self._store.set(name, self._key.sign(f"{name} {value}") + value)

    def _wait_for(self, name: str, deed: str, timeout_s: float | None = None) -> str:
        """The value of a name once it is signed; ``deed``: what rank 0 did not do where there is none in time."""
        allowed_s = self._timeout.total_seconds() if timeout_s is None else timeout_s
        deadline, forged = time.monotonic() + allowed_s, ""
        while True:
            left_s = max(0.001, deadline - time.monotonic())
            try:
                self._store.wait([name], timedelta(seconds=left_s))
                signed = self._store.get(name).decode(errors="replace")
            except DistStoreError as error:
                raise TimeoutError(f"rank 0 did not {deed} within {allowed_s:g} s{forged}") from error
            except DistNetworkError as error:
                raise ConnectionError(f"rank 0 ended before it could {deed}") from error
            signature, value = signed[:_SIGNATURE], signed[_SIGNATURE:]
            if hmac.compare_digest(signature.encode(), self._key.sign(f"{name} {value}").encode()):
                return value
            if not forged:
                forged = f": {name} is not signed by its key"
                log.warning(
                    "The store's %s is not signed by the run's key: somebody else wrote it, or a rank has another "
                    "LWPD_RUN_KEY. Waiting for rank 0 to %s",
                    name,
                    deed,
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 did not {deed} within {allowed_s:g} s{forged}")
            time.sleep(min(_LOOK_AGAIN_S, left_s))
