"""Whether a directory can be written to: asked before the work whose results are to be there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def make(typed: str, directory: Path) -> None:
    """Make a directory, if it is not there, that takes files.

    Args:
        typed: the option or setting and its value.
        directory: of which all that is not there is made.

    Raises:
        ValueError: it cannot be made, or takes no file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"{typed} cannot be written to ({error.strerror}): use a directory that can.") from None


def refuse_unwritable(typed: str, directory: Path) -> None:
    """The same, of which nothing is left: what follows may still be refused for another reason.

    >>> refuse_unwritable("--out /proc/nope", Path("/proc/nope"))
    Traceback (most recent call last):
    ValueError: --out /proc/nope cannot be written to (No such file or directory): use a directory that can.
    """
    missing = [place for place in (directory, *directory.parents) if not os.path.exists(place)]
    try:
        make(typed, directory)
    finally:
        for place in missing:
            _remove(place)


def _remove(place: Path) -> None:
    try:
        place.rmdir()
    except OSError:  # it was not made, or somebody has written there since
        return
