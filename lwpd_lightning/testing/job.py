"""A command with all the processes it starts, in a session of its own, so that nothing of it can be missed (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_POLL_S = 0.05


class HungJob(AssertionError):
    """A job that did not end in time, with the processes that hung and where they were."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended: its exit code and all that its processes printed."""

    exit_code: int
    output: str


class Job:
    """Runs ``command``; on leaving the ``with`` block every process that is left is killed.

    Workers that the strategy forked are called "lwpd-rank-3" and so on, and print their stacks on SIGUSR1, which is how
    a hung rank is named.

    Args:
        command: program and arguments.
        cwd: working directory.
        env: added to the environment.
    """

    def __init__(
        self, command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What the job has printed so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def processes(self) -> dict[int, str]:
        """The job's live processes: pid -> name."""
        return processes_of(self._process.pid)

    def rank(self, rank: int) -> int:
        """The pid of a forked worker; raises KeyError while there is none."""
        for pid, name in self.processes().items():
            if name == f"lwpd-rank-{rank}":
                return pid
        raise KeyError(rank)

    def wait_for_output(self, text: str, timeout_s: float) -> None:
        """Wait until the job has printed ``text``; raises HungJob when it has not in time, or ended without."""
        self._until(lambda: text in self.output or self._process.poll() is not None, timeout_s)
        if text not in self.output:
            raise HungJob(f"the job ended with {self._process.poll()} and never printed {text!r}:\n{self.output}")

    def interrupt(self, signum: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, or another signal, to the whole foreground group."""
        os.killpg(self._process.pid, signum)

    def kill(self, pid: int | None = None, signum: signal.Signals = signal.SIGKILL) -> None:
        """Signal one process, by default the one that was started."""
        os.kill(self._process.pid if pid is None else pid, signum)

    def wait(self, timeout_s: float) -> JobResult:
        """The result of the job; raises HungJob, with the stacks of its workers, when it does not end in time."""
        self._until(lambda: self._process.poll() is not None, timeout_s)
        return JobResult(self._process.returncode, self.output)

    def wait_until_nothing_is_left(self, timeout_s: float) -> None:
        """Wait until no process of the job is left; raises HungJob naming those that are."""
        self._until(lambda: not self.processes(), timeout_s)

    def _until(self, condition: object, timeout_s: float) -> None:
        assert callable(condition)
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                hung = self.processes()
                for pid in [pid for pid, name in hung.items() if name.startswith("lwpd-rank-")]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGUSR1)
                time.sleep(1.0)  # for the stacks to be written
                raise HungJob(f"after {timeout_s:g} s these processes are left: {hung}\n{self.output}")
            time.sleep(_POLL_S)


def processes_of(session: int) -> dict[int, str]:
    """The live processes of a session: pid -> name."""
    return {pid: name for pid, name, its in _processes() if its == session}


def _processes() -> Iterator[tuple[int, str, int]]:
    """All live processes: pid, name, session."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            before, after = (entry / "stat").read_text().rsplit(") ", 1)
            state, _, _, session, *_ = after.split()
            if state != "Z":
                yield int(entry.name), before.split("(", 1)[1], int(session)
