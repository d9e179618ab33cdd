"""Which job of a sweep this process is of, for all that it prints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

# What a sweep calls its job, in all processes of that job.
ENV_LABEL = "LWPD_JOB"
# Set where other jobs of the sweep may print to the same terminal.
ENV_BESIDE = "LWPD_BESIDE"
# The words that all jobs of the sweep have, a line each.
_ENV_COMMON = "LWPD_COMMON"


def tell_common(words: Sequence[str]) -> None:
    """Note what all jobs have, in the sweep's own process, for those that start jobs."""
    os.environ[_ENV_COMMON] = "\n".join(words)


def environment(number: int, overrides: Sequence[str], *, beside: bool) -> Mapping[str, str]:
    """What a job is told, and its own processes are, of which it is.

    Args:
        number: the job's.
        overrides: its words, of which the label has those that other jobs lack.
        beside: other jobs may print at the same time.
    """
    return {ENV_LABEL: job_label(number, overrides), ENV_BESIDE: "1" if beside else ""}


def job_label(number: int, overrides: Sequence[str]) -> str:
    """A job's number, with what is its own: `job 1 (seed=9)`."""
    common = os.environ.get(_ENV_COMMON, "").split("\n")
    own = " ".join(word for word in overrides if word not in common)
    return f"job {number} ({own})" if own else f"job {number}"


def label() -> str | None:
    """The job of a sweep that this process is of; None where it is of a single run."""
    return os.environ.get(ENV_LABEL)


def labelled(text: str) -> str:
    """A line or a title, with the job of the sweep before it."""
    return text if label() is None else f"{label()}: {text}"


def is_beside_others() -> bool:
    """Whether what is drawn here would be drawn over by other jobs."""
    return bool(os.environ.get(ENV_BESIDE))


def label_logs() -> None:
    """Put the label before what is logged to the screen; a job's log file has a directory that tells."""
    if label() is None:
        return
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(_Labelled(handler.formatter or logging.Formatter()))


class _Labelled(logging.Formatter):
    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return labelled(self._inner.format(record))
