"""Offline W&B runs read back with W&B's own tool."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.commands import run as run_command


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All records of the offline run in directory `run`, by type, in the order in which they were written."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    done = run_command(command, cwd=run)
    assert done.returncode == 0, done.stderr
    found = defaultdict(list)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        found[record["type"]].append(record[record["type"]])
    return found


def series(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[int, float]]]:
    """Each logged metric as (update, value)."""
    logged = defaultdict(list)
    for entry in found["history"]:
        for name, value in entry["item"].items():
            logged[name].append((entry["item"].get("trainer/global_step"), value))
    return logged
