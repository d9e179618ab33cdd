"""A run that is told to stop: by Ctrl-C or SIGTERM between two updates, with a word of how to go on."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from . import processes

if TYPE_CHECKING:
    from lightning import Trainer

_HANDLED = (signal.SIGINT, signal.SIGTERM)
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
            return signal.SIGTERM  # in a job of a sweep, where signals are not handled here
        if self._signum is None and isinstance(end, SystemExit) and end.code == 128 + signal.SIGTERM:
            return signal.SIGTERM  # of a peer's launcher, which comes first
        return self._signum


@contextlib.contextmanager
def telling() -> Iterator[Stop]:
    """Within, a signal that stops the run ends this process with 128 + its number and one line on standard error."""
    stop = Stop()
    handled = _HANDLED if _is_users_process() else ()
    before = {signum: signal.signal(signum, stop.on_signal) for signum in handled}
    try:
        yield stop
    except (KeyboardInterrupt, SystemExit) as end:
        signum = stop.reason(end)
        if signum is None:
            raise
        if speaks_for_the_run():
            print(_line(signal.Signals(signum).name, stop.trainer), file=sys.stderr, flush=True)
        raise SystemExit(128 + signum) from None
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) == stop.on_signal:
                signal.signal(signum, handler)


def speaks_for_the_run() -> bool:
    """Whether this process is rank 0, as far as its environment tells."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def _is_users_process() -> bool:
    return speaks_for_the_run() and threading.current_thread() is threading.main_thread()


def _line(name: str, trainer: Trainer | None) -> str:
    last = _last(trainer)
    updates = trainer.global_step if trainer is not None else 0
    if last is None:
        return f"{name} after {updates} updates, of which no checkpoint was kept; to start again: {_command(None)}"
    path, saved = last
    return f"{name} after {updates} updates; {path} holds {saved} of them; to continue: {_command(path)}"


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
    program, *typed = processes.typed()
    if checkpoint is not None:
        quoted = checkpoint if _PLAIN.fullmatch(checkpoint) else processes.quoted(checkpoint)
        typed = [word for word in typed if not word.startswith("ckpt_path=")] + [f"ckpt_path={quoted}"]
    program = "lwpd-train" if Path(program).name == "lwpd-train" else f"python -m {__package__}.train"
    return " ".join([program, shlex.join(typed)]).rstrip()
