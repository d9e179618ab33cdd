"""Runs that W&B holds: offline run directories through its own command, and projects through its API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .run import Run
from .series import columns

RESULT = "result/"  # before the names of summary.json's figures in a W&B run's summary


def offline_run(directory: Path) -> Run | None:
    """The run in an `offline-run-*` directory, None where it has not finished.

    Raises:
        ValueError: W&B cannot read the directory.
    """
    seen = json.loads(_inspect(directory, "--summary"))
    if seen["state"] != "finished":
        return None

    @cache  # a table and a figure want different series of one history, and starting W&B's command takes a second
    def history() -> list[dict[str, Any]]:
        records = (json.loads(line) for line in _inspect(directory).splitlines())
        return [_with_step(record["history"]["item"]) for record in records if record["type"] == "history"]

    return _run(str(directory), seen["config"], seen["summary"], history)


def online_runs(project: str) -> tuple[list[Run], list[str]]:
    """Finished runs of `entity/project`, and a line for each that is left out.

    Raises:
        ValueError: the project cannot be read; the reason is W&B's.
    """
    # A second to import, and runs on disk need none of it.
    import wandb

    try:
        # With lazy=False the client takes a configuration out of W&B's wrapping twice, and target is then its value.
        listed = list(wandb.Api(timeout=60).runs(project))
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"--online {project} cannot be read: {error}") from None
    runs, left_out = [], []
    for run in listed:
        if run.state != "finished":
            left_out.append(f"{run.name} (unfinished)")
            continue
        try:
            runs.append(_online_run(run))
        except ValueError as error:
            left_out.append(f"{run.name} (cannot be read: {error})")
    return runs, left_out


def _online_run(run: Any) -> Run:
    import wandb

    source = "/".join(run.path)

    @cache
    def history() -> list[dict[str, Any]]:
        try:
            return [_with_step(row) for row in run.scan_history()]
        except wandb.errors.Error as error:
            raise ValueError(f"The history of {source} cannot be read: {error}") from None

    return _run(source, run.config, run.summary_metrics, history)


def _run(
    source: str, config: dict[str, Any], summary: dict[str, Any], history: Callable[[], list[dict[str, Any]]]
) -> Run:
    figures = {name.removeprefix(RESULT): value for name, value in summary.items() if name.startswith(RESULT)}
    return Run(source, {**promised(config), **figures}, config, lambda wanted: columns(history(), wanted))


def promised(config: dict[str, Any]) -> dict[str, Any]:
    """What summary.json says and a run's configuration knows as well.

    Of a sweep of W&B's own over schemes it knows the word alone: W&B keeps what it has chosen itself.

    >>> promised({"scheme": "lwpd", "seed": 3})
    {'scheme': 'lwpd', 'code': None, 'seed': 3}
    """
    scheme = config.get("scheme") or {}
    if isinstance(scheme, str):
        scheme = {"name": scheme}
    code = (scheme.get("strategy") or {}).get("code")
    return {
        "scheme": scheme.get("name"),
        "code": {name: value for name, value in code.items() if name != "_target_"} if code else None,
        "seed": config.get("seed"),
        **({"target": config["target"]} if "target" in config else {}),
    }


def _with_step(row: dict[str, Any]) -> dict[str, Any]:
    # WandbLogger keeps the trainer's step under a name of its own; W&B's _step counts calls.
    return {**row, "step": row.get("trainer/global_step")}


def _inspect(directory: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last: Iterator[str] = reversed(done.stderr.strip().splitlines())
        raise ValueError(f"{directory} is not a W&B run that can be read: {next(last, 'no reason given')}")
    return done.stdout
