"""Strangers: processes that connect to rank 0's ports and do not know the run's key."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from pathlib import Path

WORDS = (b"", b"\xff", b"GET / HTTP/1.1\r\n\r\n")


def ports(pid: int) -> list[tuple[str, int]]:
    """Addresses at which a process listens: its host's, and the port."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, port = words[1].rsplit(":", 1)
                any_or_local = not int(address, 16) or name == "tcp6"
                found.append(("127.0.0.1" if any_or_local else _dotted(address), int(port, 16)))
    return sorted(set(found))


def _dotted(address: str) -> str:
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))


def crowd(addresses: list[tuple[str, int]], count: int, *, holds: bool, lasts_s: float = 0.0) -> int:
    """Connect so often, with and without a word; the number of connections that stood.

    Args:
        addresses: that are connected to, in turn.
        count: of connections.
        holds: keep them until the end; else each is closed at once.
        lasts_s: to spread them over, in seconds; who holds stays until then.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16384, hard), hard))
    held, stood, ends = [], 0, time.monotonic() + lasts_s
    for number in range(count):
        stranger = socket.socket()
        stranger.settimeout(0.05)
        try:
            stranger.connect(addresses[number % len(addresses)])
            stranger.sendall(WORDS[number // len(addresses) % len(WORDS)])
            stood += 1
        except OSError:
            pass
        if holds:
            held.append(stranger)
        else:
            stranger.close()
        if lasts_s and (pause := (ends - time.monotonic()) / (count - number)) > 0.001:
            select.select([], [], [], pause)
    if holds and (left := ends - time.monotonic()) > 0:
        select.select([], [], [], left)
    return stood
