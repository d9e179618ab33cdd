"""The command of one job once more, as a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Pid of the process that waits for this job: the job ends when that is gone.
ENV_WAITING = "LWPD_SWEEP"
# What was typed, as JSON, in all processes of a run that `restarts` starts.
ENV_ATTEMPT = "LWPD_ATTEMPT"


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


def typed() -> list[str]:
    """The program and the words that the user typed, also where another process has started this one for it."""
    told = os.environ.get(ENV_ATTEMPT)
    words: list[str] = sys.argv if told is None else json.loads(told)
    return words


def own_group() -> None:
    """Leave the terminal's signals to the process that starts this run again: it passes them on, and each once."""
    if is_attempt() and ENV_WAITING in os.environ:  # the run itself, and no process that it has started
        os.setpgrp()
