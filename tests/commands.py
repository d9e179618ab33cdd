"""The commands that tests start, forked from a process that has imported what they import (see `fork_server`).

A test that wants a real start, all of whose own commands are real starts too, uses `lwpd_lightning.testing.Job` and
`subprocess` as they are.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lwpd_lightning.testing import Job
from tests.fork_server import ForkedPopen, server

# For what takes seconds on a quiet machine; pytest's own timeout comes later, and knows less of what hangs.
PATIENCE_S = 240.0
# For processes to end that have lost what they belong to: they look every half a second.
ENDING_S = 40.0


def popen(command: Sequence[str], **settings: object) -> ForkedPopen:
    """A `subprocess.Popen` of a command of this Python, which is forked and not started."""
    ForkedPopen.server = server()
    return ForkedPopen(command, **settings)


class ForkedJob(Job):
    """A Job whose command is forked.

    Args:
        command: program and arguments.
        cwd: working directory.
        env: added to the environment.
        errors: file for what goes to standard error; None: with the rest of the output.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        errors: IO[bytes] | None = None,
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT if errors is None else errors, start_new_session=True,
        )  # fmt: skip


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would return of the forked command, with ``env`` added to the environment.

    Raises:
        HungJob: it did not end in time; nothing of it is left.
    """
    with tempfile.TemporaryFile() as errors, ForkedJob(command, cwd=cwd, env=env, errors=errors) as job:
        result = job.wait(timeout_s)
        errors.seek(0)
        return subprocess.CompletedProcess(command, result.exit_code, result.output, errors.read().decode())
