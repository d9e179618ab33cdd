"""Where the ranks of a fit find each other: torch's TCPStore holds the coordinator's address and the run's seed.

Nothing secret and no tensor passes it; whoever tampers with it can keep a worker from finding the coordinator, but not
stand in for either, since both prove the run's key on the link itself.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined]

from lwpd_lightning.links.keys import RunKey

LOOPBACK = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for the store, made before the workers are so that they know its port (0: any free one)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
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
        key: signs what calls led to.
        attempt: which start of the job this is, where a store outlives one: torchrun's agent keeps what ranks that it
            has started before have left there.
    """

    def __init__(self, store: TCPStore, generation: int, timeout_s: float, key: RunKey, attempt: str = "0") -> None:
        self._store, self._key, self._attempt = store, key, attempt
        self._root = f"lwpd/{attempt}"
        self._prefix = f"{self._root}/{generation}"
        self._timeout = timedelta(seconds=timeout_s)

    @classmethod
    def host(cls, listener: socket.socket, generation: int, timeout_s: float, key: RunKey) -> Rendezvous:
        """Serve the store on ``listener``, which it takes over."""
        host, port = listener.getsockname()[:2]
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
        )
        return cls(store, generation, timeout_s, key)

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
        """Tell the workers where the coordinator of the fit's exchange number ``segment`` listens.

        Args:
            address: "tcp://host:port".
            seed: keys the batches.
            segment: a fit begins another exchange whenever what it trains changes.
        """
        self._store.set(f"{self._prefix}/coordinator/{segment}", f"{seed} {address}")
        self._store.set(f"{self._prefix}/newest", str(segment))

    @property
    def newest(self) -> int:
        """The number of the fit's newest exchange, which a process that comes late takes part in."""
        return int(self._wait_for(f"{self._prefix}/newest", "start its fit"))

    def tell(self, entry: int, outcome: str) -> None:
        """Tell the other ranks what call number ``entry`` of the job led to."""
        self._store.set(f"{self._root}/entry/{entry}", self._sign(entry, outcome) + outcome)

    def told(self, entry: int, rank: int) -> str:
        """Wait until rank 0's call number ``entry`` is over, and give what it led to.

        Raises:
            TimeoutError: it was not over in time.
            ConnectionError: rank 0 ended before it was, or somebody else answered.
        """
        signed = self._wait_for(f"{self._root}/entry/{entry}", f"end its call number {entry}")
        signature, outcome = signed[:64], signed[64:]
        if not hmac.compare_digest(signature, self._sign(entry, outcome)):
            raise ConnectionError("what the store says of rank 0 is not signed by the run's key")
        self._store.set(f"{self._root}/read/{entry}/{rank}", "")
        return outcome

    def await_readers(self, entry: int, ranks: Sequence[int], timeout_s: float) -> None:
        """Wait until ``ranks`` have read what call number ``entry`` led to, or for ``timeout_s`` seconds."""
        with contextlib.suppress(DistStoreError, DistNetworkError):
            self._store.wait([f"{self._root}/read/{entry}/{rank}" for rank in ranks], timedelta(seconds=timeout_s))

    def coordinator(self, segment: int = 0) -> tuple[str, int]:
        """Wait for the (address, seed) of the coordinator of an exchange.

        Raises:
            TimeoutError: rank 0 announced nothing in time.
            ConnectionError: rank 0's store is gone.
        """
        seed, address = self._wait_for(f"{self._prefix}/coordinator/{segment}", "start its fit").split(" ", 1)
        return address, int(seed)

    def _sign(self, entry: int, outcome: str) -> str:
        return self._key.sign(f"{self._attempt} {entry} {outcome}")

    def _wait_for(self, key: str, deed: str) -> str:
        try:
            self._store.wait([key], self._timeout)
        except DistStoreError as error:
            waited = self._timeout.total_seconds()
            raise TimeoutError(f"rank 0 did not {deed} within {waited:g} s") from error
        except DistNetworkError as error:
            raise ConnectionError(f"rank 0 ended before it could {deed}") from error
        return str(self._store.get(key).decode())
