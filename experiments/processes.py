"""The command of one job once more, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import typed_command
from .typed_command import ENV_ATTEMPT

# What ends a run, in order.
STOPPING = (signal.SIGINT, signal.SIGTERM)
# Pid of the process that waits for this job: the job ends when that is gone.
ENV_WAITING = "LWPD_SWEEP"


def command(hydra: Any, directory: Path, overrides: Sequence[str]) -> list[str]:
    """What runs a Hydra job again in `directory`, which the process that asks has made.

    Args:
        hydra: `HydraConfig.get()`.
        directory: the job's.
        overrides: its words.
    """
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [
        *(sys.executable, "-m", f"{__package__}.train", f"--config-name={hydra.job.config_name}"),
        *(f"--config-dir={path}" for path in own),
        *overrides,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(str(directory))}",
        "hydra.output_subdir=null",  # this process has written .hydra/
    ]


def start(command: Sequence[str], cwd: str, added: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job that Ctrl-C and SIGTERM reach when it can answer them, at `hear`, and not amid its imports.

    Args:
        command: program and arguments.
        cwd: working directory.
        added: to the environment.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # which what is started inherits
    try:
        return subprocess.Popen(command, cwd=cwd, env={**os.environ, **added})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear() -> None:
    """Let in what has been held back since this process was started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def quoted(value: str) -> str:
    """A name in Hydra's grammar of overrides."""
    return "'" + value.replace("'", "\\'") + "'"


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def waiting_process() -> int | None:
    """Pid of the process that waits for this job; told once, so that the job's own processes do not ask."""
    pid = os.environ.pop(ENV_WAITING, None)
    return int(pid) if pid is not None else None


def read(path: Path) -> dict[str, Any]:
    """A JSON document; empty where there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return document


def is_attempt() -> bool:
    """Whether this process is of a run that another one starts again when it dies (`restarts`)."""
    return ENV_ATTEMPT in os.environ


def attempt() -> dict[str, str]:
    """Environment of a run that this process starts, and starts again when it dies."""
    return {ENV_WAITING: str(os.getpid()), ENV_ATTEMPT: json.dumps(typed_command.typed())}


def own_group() -> None:
    """Leave the terminal's signals to the process that starts this run again: it passes them on, and each once."""
    if is_attempt() and ENV_WAITING in os.environ:  # the run itself, and no process that it has started
        os.setpgrp()
