"""`restarts=N`: a process that starts the run, and starts it again from its last checkpoint when it dies of no fault.

It imports neither torch nor Lightning, and does nothing but wait. The run is its child and ends when it is gone, so
that whatever ends this process ends all; a signal that it gets the run gets, whose exit code is its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from . import job_label, processes
from .processes import STOPPING
from .summary import FAILURE

_LOOK_S = 0.1
# Before the run is started again; what is left of the one before ends by itself within the first.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_OUTSIDE = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def restarts_of(cfg: DictConfig) -> int:
    """How often this process is to start the run again; 0: it is the run itself.

    Raises:
        CompactHydraException: `restarts` is no such number, or ranks are started by somebody else.
    """
    wanted = cfg.restarts
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise CompactHydraException(
            f"restarts={processes.as_typed(wanted)} is no number of restarts: use 0, 1, 2 or more."
        )
    if processes.is_attempt():
        return 0
    found = [name for name in _OUTSIDE if name in os.environ]
    if wanted and found and os.environ.get("SLURM_NTASKS") != "1":  # one task of Slurm's starts its ranks itself
        raise CompactHydraException(
            f"restarts={wanted} starts all ranks of one machine again, and {found[0]} says that something else starts "
            "them: leave restarts out, use resume=auto, and let that restart them (torchrun --max-restarts, scontrol "
            "requeue)."
        )
    return wanted


def supervise(cfg: DictConfig, restarts: int) -> int:
    """Run the job, again from its last checkpoint up to `restarts` times; returns the exit code for this process.

    It is started again when a signal killed it that this process has not passed on, or when it ended by what a
    `failure.json` calls lost: workers, links, memory or a disk that failed it. Anything else would only fail again.
    """
    waiting = processes.waiting_process()
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    command = processes.command(hydra, directory, hydra.overrides.task)
    told = _Told()
    before = {signum: signal.signal(signum, told.on_signal) for signum in STOPPING}
    try:
        processes.hear()
        for attempt in range(restarts + 1):
            (directory / FAILURE).unlink(missing_ok=True)
            code = _run(command, hydra.runtime.cwd, told, waiting)
            reason = _lost(code, directory)
            if told.signum is not None or reason is None or attempt == restarts:
                break
            pause_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            left = f"{restarts - attempt} of {restarts} restarts are left."
            said = f"The run {reason}; it is started again in {pause_s:g} s, {left}"
            print(job_label.labelled(said), file=sys.stderr, flush=True)
            deadline = time.monotonic() + pause_s
            while told.signum is None and time.monotonic() < deadline:
                _end_with(waiting)
                time.sleep(_LOOK_S)
            if told.signum is not None:
                return 128 + told.signum
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code if code >= 0 else 128 - code


class _Told:
    """Signals that this process got, which it passes on to the run."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.run: subprocess.Popen[bytes] | None = None

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and job_label.label() is not None:
            return  # Ctrl-C reaches this process, and the sweep passes it on as well
        self.signum = signum
        if self.run is not None and self.run.poll() is None:
            self.run.send_signal(signum)


def _run(command: list[str], cwd: str, told: _Told, waiting: int | None) -> int:
    told.run = run = processes.start(command, cwd, processes.attempt())
    if told.signum is not None:  # before there was a run that it could be passed on to
        run.send_signal(told.signum)
    try:
        while True:
            try:
                return run.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                _end_with(waiting)
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()


def _end_with(waiting: int | None) -> None:
    """End where the sweep that this is a job of is gone."""
    if waiting is not None and os.getppid() != waiting:
        raise SystemExit(1)


def _lost(code: int, directory: Path) -> str | None:
    """How the run ended, in words, where another start may do better; None where it may not."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    failure = processes.read(directory / FAILURE) if code else {}
    return f"ended ({failure['sentence']})" if failure.get("lost") else None
