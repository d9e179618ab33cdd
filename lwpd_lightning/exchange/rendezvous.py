"""Where the ranks of a fit find each other: torch's TCPStore holds the coordinator's address and the run's seed.

Nothing secret and no tensor passes it; whoever tampers with it can keep a worker from finding the coordinator, but not
stand in for either, since both prove the run's key on the link itself.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined]

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
    """

    def __init__(self, store: TCPStore, generation: int, timeout_s: float) -> None:
        self._store = store
        self._prefix = f"lwpd/{generation}"
        self._timeout = timedelta(seconds=timeout_s)

    @classmethod
    def host(cls, listener: socket.socket, generation: int, timeout_s: float) -> Rendezvous:
        """Serve the store on ``listener``, which it takes over."""
        host, port = listener.getsockname()[:2]
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True
        )
        return cls(store, generation, timeout_s)

    @classmethod
    def join(cls, host: str, port: int, generation: int, timeout_s: float) -> Rendezvous:
        """Connect to the store that rank 0 (or the launcher's agent) serves; raises TimeoutError where none is."""
        timeout = timedelta(seconds=timeout_s)
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        except DistNetworkError as error:
            raise TimeoutError(f"rank 0 did not open its store at {host} port {port} within {timeout_s:g} s") from error
        return cls(store, generation, timeout_s)

    def announce(self, address: str, seed: int) -> None:
        """Tell the workers where the coordinator listens and which seed keys the batches."""
        self._store.set(f"{self._prefix}/coordinator", f"{seed} {address}")

    def coordinator(self) -> tuple[str, int]:
        """Wait for the coordinator's (address, seed).

        Raises:
            TimeoutError: rank 0 announced nothing in time.
            ConnectionError: rank 0's store is gone.
        """
        key = f"{self._prefix}/coordinator"
        try:
            self._store.wait([key], self._timeout)
        except DistStoreError as error:
            waited = self._timeout.total_seconds()
            raise TimeoutError(f"rank 0 did not start its fit within {waited:g} s") from error
        except DistNetworkError as error:
            raise ConnectionError("rank 0 ended before it started its fit") from error
        seed, address = self._store.get(key).decode().split(" ", 1)
        return address, int(seed)
