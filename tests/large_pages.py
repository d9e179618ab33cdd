"""Memory that a process is about to fork many times, in pages of two megabytes.

Each fork copies a table of all pages and gives it back at its end: with half a gigabyte of imported modules in small
pages, a third of what a fit of a few updates costs. Where Linux is older than 6.1, or has no room, nothing changes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MADV_COLLAPSE = 25
_LARGE = 2 << 20


def use_large_pages() -> None:
    """Put all that this process has written so far, as far as it fills them, into large pages."""
    try:
        maps = Path("/proc/self/maps").read_text()
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for line in maps.splitlines():
        area, rights, *_, inode = line.split()[:5]
        own = line.endswith("[heap]") or len(line.split()) == 5
        if not (own and rights == "rw-p" and inode == "0"):
            continue
        begin, end = (int(address, 16) for address in area.split("-"))
        begin, end = -(-begin // _LARGE) * _LARGE, end // _LARGE * _LARGE
        if begin < end:
            madvise(begin, end - begin, _MADV_COLLAPSE)
