"""Which process a run is, so that another one can say when it is gone (Linux)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def identity(pid: int) -> dict[str, Any]:
    """A process by its machine, pid and start, of which no other has all three; empty where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A container numbers its processes by itself.
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        state, *others = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return {}
    # The start is the 22nd figure; one that is only waited for does nothing any more.
    return {"machine": machine, "pid": pid, "started": None if state in "ZX" else int(others[18])}


def is_gone(told: dict[str, Any]) -> bool:
    """Whether the process that is `told` has ended; False where nobody here can know."""
    here = identity(os.getpid())
    if not told or here.get("machine") != told["machine"]:
        return False
    return identity(told["pid"]) != told
