"""One timing, one process: a bench runs itself again for each, and reads the figures from a line that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_PREFIX = "RESULT "


def tell(figures: Mapping[str, float]) -> None:
    """Print the figures, in the process that measured them."""
    print(_PREFIX + json.dumps(figures))


def measured(
    module: str, scheme: str, environment: Mapping[str, str] | None = None, **sizes: int | str
) -> dict[str, Any]:
    """Run ``python -m module --one scheme --size value ...``; the figures that it told.

    Raises:
        RuntimeError: it told none; with the end of what it said instead.
    """
    command = [sys.executable, "-m", module, "--one", scheme]
    for name, value in sizes.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = next((line for line in done.stdout.splitlines() if line.startswith(_PREFIX)), None)
    if told is None:
        raise RuntimeError(f"{scheme} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(told.removeprefix(_PREFIX))
    return figures
