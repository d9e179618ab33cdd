"""Open files that links need: asked for before the first link, refused in words where there are too few."""

from __future__ import annotations

import os
import resource

# Beside links: ZeroMQ's own, the log, datasets that open files later.
_SPARE = 64
_OPEN_FILES = "/proc/self/fd"


class TooFewFiles(RuntimeError):
    """This process may not open as many files as its links need."""


def make_room(links: int, files_each: int) -> None:
    """Let this process open ``files_each`` files for each of ``links`` links, beside those that it has.

    Raises the soft limit as far as it must, and never lowers it.

    Raises:
        TooFewFiles: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    needed = _open_files() + links * files_each + _SPARE
    if soft == unlimited or soft >= needed:
        return
    if hard != unlimited and hard < needed:
        raise TooFewFiles(
            f"links to {links} other ranks need {needed} open files, and this process may have {hard}: raise the hard "
            f"limit (`ulimit -Hn {needed}` as root, LimitNOFILE= of a service), or use {_most(hard, files_each)} ranks "
            "at most, or ranks that are forked on one machine, which share memory."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _most(limit: int, files_each: int) -> int:
    return 1 + max(0, limit - _open_files() - _SPARE) // files_each


def _open_files() -> int:
    return len(os.listdir(_OPEN_FILES)) if os.path.isdir(_OPEN_FILES) else _SPARE
