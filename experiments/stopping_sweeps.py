"""A sweep that is told to stop: its running jobs stop as single runs do, none is begun, and a line says how to go on.

Launchers start jobs from this process, from others, or on other machines. All that start one look at the sweep's
directory: while a job runs a file says so there, and another says that the sweep has been told to stop.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from . import job_label, sweep_jobs, typed_command
from .identity import identity, is_gone
from .processes import STOPPING, read
from .summary import write_atomically

_FOLDER, _TOLD = ".stopping", "told"
_LOOK_S = 0.1


class Stopped(SystemExit):
    """The sweep has been told to stop, and its jobs have."""


class Stop:
    """What has told this process to stop, which is the sweep's own or one that a launcher started for its jobs."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.is_own = False
        self._directory = Path()
        self._jobs: list[list[str]] | None = None
        self._folder: Path | None = None
        self._before: dict[int, Any] = {}
        self._runs_a_job = False

    def begin(self, config: DictConfig) -> None:
        """This process is the sweep's own, and from here on answers Ctrl-C and SIGTERM."""
        self.is_own, self._directory = True, Path(config.hydra.sweep.dir)
        self._folder = self._directory.absolute() / _FOLDER
        shutil.rmtree(self._folder, ignore_errors=True)  # of when it was stopped before
        self._listen()
        self._jobs = sweep_jobs.jobs(config)
        job_label.tell_common(sweep_jobs.common(config))

    def end(self) -> None:
        """All jobs have ended."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def running(self, hydra: Any) -> Iterator[None]:
        """Within, a job runs that this process waits for.

        Args:
            hydra: the job's `HydraConfig.get()`.

        Raises:
            Stopped: when it has ended, in the sweep's own process, where the sweep has been told to stop.
        """
        if not self.is_own and not self._before:
            # Until this process ends: it waits for the next job of a sweep that Ctrl-C must not break in its midst.
            self._listen()
        self._folder = Path(hydra.runtime.cwd, hydra.sweep.dir) / _FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = self._folder / str(hydra.job.num)
        self._runs_a_job = True
        try:
            write_atomically(mark, identity(os.getpid()))
            yield
        finally:
            mark.unlink(missing_ok=True)
            self._runs_a_job = False
        if self.is_own and self.signum is not None:
            raise Stopped(128 + self.signum)

    def told(self) -> int | None:
        """The signal that this process or the sweep's own got; None while there was none."""
        if self.signum is None and self._folder is not None:
            with contextlib.suppress(FileNotFoundError, ValueError):  # or it is being written
                self.signum = int((self._folder / _TOLD).read_text())
        return self.signum

    def line(self) -> str:
        """What was finished, what was stopped and where it is kept, what was not begun, and how to go on."""
        assert self.signum is not None
        state = sweep_jobs.state(self._directory, self._jobs, self._marks(gone=True))
        said = f"{signal.Signals(self.signum).name}: {state}"
        _, words = typed_command.typed()
        if (self._directory / "multirun.yaml").is_file():
            return f"{said}; to continue: {typed_command.command_line(sweep_jobs.resuming(words))}"
        return f"{said}; to start again: {typed_command.command_line(words)}"

    def _marks(self, *, gone: bool) -> list[int]:
        """Numbers of jobs that run, or whose process here was killed as it waited for them."""
        folder = self._folder or Path()
        marks = [mark for mark in folder.glob("*") if mark.name.isdigit()]
        return sorted(int(mark.name) for mark in marks if is_gone(read(mark)) == gone)

    def _listen(self) -> None:
        for signum in STOPPING:
            with contextlib.suppress(ValueError):  # in a thread, where nobody listens
                self._before[signum] = signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, self.signum or signum
        if not self.is_own:
            return
        assert self._folder is not None
        if not again:
            with contextlib.suppress(OSError):  # there is no directory before the first job
                self._folder.mkdir(exist_ok=True)
                (self._folder / _TOLD).write_text(str(signum))
            if self._runs_a_job:
                return
            while self._marks(gone=False):
                time.sleep(_LOOK_S)
        raise Stopped(128 + self.signum)
