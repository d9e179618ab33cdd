"""What breaks a single worker, and is no error of the program that all run."""

from __future__ import annotations

import os
import traceback

_SHARED_TENSORS = os.path.join("torch", "multiprocessing", "reductions.py")


class DataSourceFailed(RuntimeError):
    """A batch could not be read, by a worker whose data are its own: the cause is an OSError."""


def outage_of(error: BaseException, *, dispensable: bool = False) -> str | None:
    """What of a worker's surroundings has failed, in words; None where it is an error of the program.

    Others, which have memory and data of their own, go on without it; ``dispensable``: where it is an error of the
    program too.
    """
    if isinstance(error, MemoryError):
        return "it ran out of memory"
    # A process that fetches batches was killed, as where memory is short.
    killed = "a process of its DataLoader was killed"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return killed
    # Or it is found out by a tensor that the process shared, and nobody has buried the process yet.
    unread = isinstance(error, DataSourceFailed)
    found = error.__cause__ if unread and error.__cause__ is not None else error
    shared = any(frame.filename.endswith(_SHARED_TENSORS) for frame in traceback.extract_tb(found.__traceback__))
    if shared and isinstance(found, ConnectionError | EOFError | FileNotFoundError):
        return killed
    if unread:
        return "its data could not be read"
    return f"its code raised {type(error).__name__}" if dispensable and isinstance(error, Exception) else None
