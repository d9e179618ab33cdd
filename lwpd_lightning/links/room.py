"""Open files that links need: asked for before the first link, refused in words where there are too few."""

from __future__ import annotations

import os
import resource

# Beside links: ZeroMQ's own, the log, datasets that open files later, and what strangers may not take.
_SPARE = 256
# What is asked for beyond that where the hard limit allows it: strangers' connections take files too.
_FOR_STRANGERS = 1024
# While fewer files than these may be opened, nobody new is let in: for what a process opens beside links (checkpoints).
# The store's door shuts first, since a stranger may stay there for as long as it likes.
KEPT_BY_LINKS, KEPT_BY_STORE = 128, 192
_OPEN_FILES = "/proc/self/fd"


class TooFewFiles(RuntimeError):
    """This process may not open as many files as its links need."""


def make_room(links: int, files_each: int) -> None:
    """Let this process open ``files_each`` files for each of ``links`` links, beside those that it has.

    Raises the soft limit as far as it must, with room for strangers where there is some, and never lowers it.

    Raises:
        TooFewFiles: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    needed = _open_files() + links * files_each + _SPARE
    if soft == unlimited or soft >= needed + _FOR_STRANGERS:
        return
    if hard != unlimited and hard < needed:
        raise TooFewFiles(
            f"links to {links} other ranks need {needed} open files, and this process may have {hard}: raise the hard "
            f"limit (`ulimit -Hn {needed}` as root, LimitNOFILE= of a service), or use {_most(hard, files_each)} ranks "
            "at most, or ranks that are forked on one machine, which share memory."
        )
    wanted = needed + _FOR_STRANGERS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted if hard == unlimited else min(wanted, hard)), hard))


def free_files() -> int:
    """How many files this process may still open, at most a million."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1_000_000 if soft == resource.RLIM_INFINITY else min(soft, 1_000_000)) - _open_files()


def _most(limit: int, files_each: int) -> int:
    return 1 + max(0, limit - _open_files() - _SPARE) // files_each


def _open_files() -> int:
    try:
        return len(os.listdir(_OPEN_FILES))
    except FileNotFoundError:
        return _SPARE
    except OSError:  # not one more may be opened
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
