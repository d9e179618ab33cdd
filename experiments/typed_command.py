"""The command that the user typed, for commands that he is shown to type next."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# What was typed, as JSON, in all processes of a run that `restarts` starts.
ENV_ATTEMPT = "LWPD_ATTEMPT"
_ENTRY_POINT = "lwpd-"


def typed() -> tuple[list[str], list[str]]:
    """What starts the program, as it was typed, and the words after it; also where another process has started this."""
    told = os.environ.get(ENV_ATTEMPT)
    if told is None:
        return _program(), sys.argv[1:]
    program, words = json.loads(told)
    return program, words


def command_line(words: Sequence[str]) -> str:
    """The program that was typed with other words, quoted for a shell."""
    return shlex.join([*typed()[0], *words])


def beside(name: str) -> str:
    """How another command of ours is started, by an entry point or by the interpreter, as the one that was typed."""
    program, _ = typed()
    if len(program) == 1:
        path = Path(program[0])
        return shlex.quote(str(path.with_name(f"{_ENTRY_POINT}{name}")))
    return shlex.join([program[0], "-m", f"{__package__}.{name}"])


def _program() -> list[str]:
    start = len(sys.orig_argv) - len(sys.argv[1:])
    program = sys.orig_argv[:start]
    # In a notebook, say, or a test, Python was started with other words.
    if len(program) < 2 or sorted(sys.orig_argv[start:]) != sorted(sys.argv[1:]):
        return [sys.executable, "-m", f"{__package__}.train"]
    script = Path(program[-1])
    if not script.name.startswith(_ENTRY_POINT):
        return program
    found = shutil.which(script.name)
    # The system has put the whole path where a name was typed, and the interpreter before it.
    return [script.name if found and os.path.samefile(found, script) else str(script)]
