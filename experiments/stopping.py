"""A run that is told to stop: by Ctrl-C or SIGTERM between two updates, with a word of how to go on.

A job of a sweep leaves that word in its `failure.json`, for the sweep's own line (see `stopping_sweeps`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from . import job_label, processes, typed_command
from .processes import STOPPING
from .summary import FAILURE, job_overrides, write_atomically

if TYPE_CHECKING:
    from lightning import Trainer

_LIGHTNINGS = "lightning.pytorch.trainer.connectors.signal_connector"
_PLAIN = re.compile(r"[\w./-]+")  # what Hydra reads as it stands


class Stop:
    """What has told this run to stop, and how far it had come; `trainer` is None until there is one."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self._signum: int | None = None
        self._passed_on = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Let Lightning, where it is at work, finish the update under way; end at once when told again."""
        if self._passed_on:  # by Lightning's handler, which calls this one
            return
        again, lightnings = self._signum is not None, signal.getsignal(signal.SIGTERM)
        if again and job_label.label() is not None:  # by the terminal or a scheduler, and by the sweep as well
            return
        self._signum = self._signum or signum
        if again or lightnings == self.on_signal or not callable(lightnings):
            raise SystemExit(128 + self._signum)
        if signum == signal.SIGINT:
            self._passed_on = True
            lightnings(signal.SIGTERM, frame)
            self._passed_on = False

    def reason(self, end: BaseException) -> int | None:
        """Signal that led to `end`; None where it was none."""
        if isinstance(end, KeyboardInterrupt):
            return signal.SIGINT
        if self._signum is None and type(end).__name__ == "SIGTERMException":
            return signal.SIGTERM  # of a rank that another process has started, where signals are not handled here
        if self._signum is None and isinstance(end, SystemExit) and end.code == 128 + signal.SIGTERM:
            return signal.SIGTERM  # of a peer's launcher, which comes first
        return self._signum


_stop = Stop()


@contextlib.contextmanager
def telling(directory: Path) -> Iterator[Stop]:
    """Within, a signal that stops the run ends this process with 128 + its number and one line on standard error.

    Args:
        directory: the run's, for the word of a job of a sweep.
    """
    global _stop
    _stop = stop = Stop()
    handled = STOPPING if _is_users_process() else ()
    before = {signum: signal.signal(signum, stop.on_signal) for signum in handled}
    logging.getLogger(_LIGHTNINGS).addFilter(_is_news)
    try:
        processes.hear()
        yield stop
    except (KeyboardInterrupt, SystemExit) as end:
        signum = stop.reason(end)
        if signum is None:
            raise
        if speaks_for_the_run():
            _tell(signal.Signals(signum).name, stop.trainer, directory)
        raise SystemExit(128 + signum) from None
    finally:
        logging.getLogger(_LIGHTNINGS).removeFilter(_is_news)
        for signum, handler in before.items():
            if signal.getsignal(signum) == stop.on_signal:
                signal.signal(signum, handler)


def told_by(end: BaseException) -> str | None:
    """Name of the signal that led to `end`; None where it was none."""
    signum = _stop.reason(end) if isinstance(end, KeyboardInterrupt | SystemExit) else None
    return None if signum is None else signal.Signals(signum).name


def _is_news(record: logging.LogRecord) -> bool:
    """Lightning calls Ctrl-C a SIGTERM, since that is how it is told; our line has the right name."""
    return "Received SIGTERM" not in record.getMessage()


def speaks_for_the_run() -> bool:
    """Whether this process is rank 0, as far as its environment tells."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def _is_users_process() -> bool:
    return speaks_for_the_run() and threading.current_thread() is threading.main_thread()


def _tell(name: str, trainer: Trainer | None, directory: Path) -> None:
    last = _last(trainer)
    after = f"after {trainer.global_step if trainer is not None else 0} updates"
    kept = "no checkpoint was kept" if last is None else f"{last[0]} holds {last[1]} of them"
    if job_label.label() is not None:
        document = {"overrides": job_overrides(), "sentence": f"{name} {after}; {kept}", "stopped": f"{after}, {kept}"}
        with contextlib.suppress(OSError):
            write_atomically(directory / FAILURE, document)
    elif last is None:
        print(f"{name} {after}, of which {kept}; to start again: {_command(None)}", file=sys.stderr, flush=True)
    else:
        print(f"{name} {after}; {kept}; to continue: {_command(last[0])}", file=sys.stderr, flush=True)


def _last(trainer: Trainer | None) -> tuple[str, int] | None:
    if trainer is None:
        return None
    # Lightning takes seconds to import; a trainer that is there has done so.
    from .checkpoints import LastCheckpoint

    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LastCheckpoint) and callback.saved is not None:
            path, here = Path(os.path.abspath(callback.path)), Path.cwd()
            return str(path.relative_to(here) if path.is_relative_to(here) else path), callback.saved
    return None


def _command(checkpoint: str | None) -> str:
    """The command as typed, but for where it continues."""
    _, words = typed_command.typed()
    if checkpoint is not None:
        quoted = checkpoint if _PLAIN.fullmatch(checkpoint) else processes.quoted(checkpoint)
        words = [word for word in words if not word.startswith("ckpt_path=")] + [f"ckpt_path={quoted}"]
    return typed_command.command_line(words)
