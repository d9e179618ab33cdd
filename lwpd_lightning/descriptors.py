"""Files that were open when a process was forked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

_OPEN_FILES = "/proc/self/fd"


def own_offsets() -> None:
    """Let the files that this fork inherited open for reading move on their own, as if it had opened them itself.

    A fork shares the position in an open file with its parent and siblings, so that the reads of datasets that keep a
    file, a zip archive or an HDF5 file open would disturb each other. Files open for writing stay shared: a log is
    written in turns. Does nothing where the system does not list open files.
    """
    names = os.listdir(_OPEN_FILES) if os.path.isdir(_OPEN_FILES) else []
    for descriptor in map(int, names):
        with contextlib.suppress(OSError):  # closed meanwhile, or not to be opened again
            _reopen(descriptor)


def _reopen(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or flags & os.O_ACCMODE != os.O_RDONLY:
        return
    own = os.open(f"{_OPEN_FILES}/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(own, descriptor, os.get_inheritable(descriptor))
    finally:
        os.close(own)
