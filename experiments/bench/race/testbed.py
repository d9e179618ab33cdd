"""Hosts on one machine: network namespaces joined by a bridge, each link shaped in both directions (Linux, root)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType

from .traffic import Traffic

# A token bucket must hold what a link sends between two ticks of the kernel's clock, and no more than the sockets'
# buffers would notice: 4 ms at the rate, at least two full segments.
_BURST_S = 0.004
_LEAST_BURST_BYTES = 2 * 65536
# How long a packet may queue at a link before it is dropped.
_QUEUE_MS = 100
_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:01"  # a link-layer address that no host has


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        namespace: name of its network namespace.
        address: its IPv4 address on the testbed.
        interface: name of its only interface beside loopback.
    """

    namespace: str
    address: str
    interface: str = "eth0"

    def enter(self) -> None:
        """Move the calling process to this host; its sockets are the host's from then on."""
        with open(f"/run/netns/{self.namespace}") as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")

    def traffic(self) -> Traffic:
        """What has passed its interface."""
        counted = f"/sys/class/net/{self.interface}/statistics"
        command = ["ip", "netns", "exec", self.namespace, "cat", f"{counted}/tx_bytes", f"{counted}/rx_bytes"]
        sent, received = _run(command).split()
        return Traffic(int(sent), int(received))


class ShapedHosts:
    """``count`` hosts on one switch; a context manager that leaves nothing behind.

    Args:
        count: number of hosts; host 0 is where the coordinator runs.
        mbit: rate of each host's link in each direction, in Mbit/s; None: unshaped.
        coordinator_mbit: rate of host 0's link; None: as the others'.

    Raises:
        ValueError: for rates that are not positive, or fewer than two hosts.
        PermissionError: without root.
    """

    def __init__(self, count: int, mbit: float | None = None, coordinator_mbit: float | None = None) -> None:
        if count < 2:
            raise ValueError(f"count={count}: a testbed has at least 2 hosts.")
        for name, rate in (("mbit", mbit), ("coordinator_mbit", coordinator_mbit)):
            if rate is not None and not rate > 0:
                raise ValueError(f"{name}={rate} is no rate: use a positive number of Mbit/s, or None for no limit.")
        refuse_missing_tools()
        self._rates = [coordinator_mbit or mbit, *[mbit] * (count - 1)]
        prefix = f"lwpd{os.getpid()}"
        self._switch = f"{prefix}-switch"
        self.hosts = [Host(f"{prefix}-h{i}", f"10.77.0.{i + 1}") for i in range(count)]

    def __enter__(self) -> ShapedHosts:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    # What befalls links while they are used.

    def cut(self, one: int, other: int) -> None:
        """From now on no packet of host ``one`` reaches host ``other``, as behind a firewall that drops them."""
        self._neighbour(one, f"replace {self.hosts[other].address} lladdr {_NOBODY} nud permanent")

    def mend(self, one: int, other: int) -> None:
        """They do again."""
        self._neighbour(one, f"del {self.hosts[other].address}")

    def throttle(self, number: int, mbit: float) -> None:
        """From now on a host's link has this rate in both directions."""
        self._shape(number, mbit)

    def unthrottle(self, number: int) -> None:
        """It has the rate that it was built with."""
        self._shape(number, self._rates[number])

    def _neighbour(self, number: int, change: str) -> None:
        host = self.hosts[number]
        _inside(host.namespace, f"ip neigh {change} dev {host.interface}")

    def _shape(self, number: int, rate: float | None) -> None:
        host = self.hosts[number]
        for namespace, interface in ((host.namespace, host.interface), (self._switch, f"port{number}")):
            at = f"dev {interface} root"
            _inside(namespace, f"tc qdisc replace {at} {_bucket(rate)}" if rate is not None else f"tc qdisc del {at}")

    def _build(self) -> None:
        # The switch has a namespace of its own, so that the machine's own network is not touched.
        _run(["ip", "netns", "add", self._switch])
        _inside(self._switch, "ip link add switch type bridge")
        _inside(self._switch, "ip link set switch up")
        for number, (host, rate) in enumerate(zip(self.hosts, self._rates, strict=True)):
            port = f"port{number}"
            _run(["ip", "netns", "add", host.namespace])
            _inside(self._switch, f"ip link add {port} type veth peer name {host.interface} netns {host.namespace}")
            _inside(self._switch, f"ip link set {port} master switch up")
            _inside(host.namespace, f"ip addr add {host.address}/24 dev {host.interface}")
            _inside(host.namespace, f"ip link set {host.interface} up")
            _inside(host.namespace, "ip link set lo up")
            if rate is not None:
                self._shape(number, rate)

    def _remove(self) -> None:
        for namespace in [*(host.namespace for host in self.hosts), self._switch]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(["ip", "netns", "delete", namespace])


def refuse_missing_tools() -> None:
    """Raise PermissionError without root, FileNotFoundError without iproute2."""
    if os.geteuid() != 0:
        raise PermissionError("shaped links need root: run as root, or use --regimes unshaped.")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not installed: install iproute2, or use --regimes unshaped.")


def _bucket(mbit: float) -> str:
    burst = max(_LEAST_BURST_BYTES, round(mbit * 1e6 / 8 * _BURST_S))
    return f"tbf rate {mbit:g}mbit burst {burst} latency {_QUEUE_MS}ms"


def _inside(namespace: str, command: str) -> None:
    _run(["ip", "netns", "exec", namespace, *command.split()])


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
