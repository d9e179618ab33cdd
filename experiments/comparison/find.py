"""Where runs are: local directories, found recursively."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .parts import join
from .run import Run
from .series import read_metrics
from .wandb_runs import offline_run

# libyaml's parser where it is there: five hundred configurations are otherwise most of the reading.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def local_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Finished runs below `paths`, each with those that it continues, and a line for each that is left out and why.

    Raises:
        ValueError: a path does not exist.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no directory: use one that holds runs, such as outputs.")
    runs, unfinished, left_out = [], [], []
    directories = {directory.resolve(): directory for path in paths for directory in run_directories(path)}
    for directory in directories.values():
        try:
            run = _read(directory)
        except (ValueError, OSError) as error:
            left_out.append(f"{directory} (cannot be read: {error})")
            continue
        if run is None:
            unfinished.append(directory)
        else:
            runs.append(run)
    logs = [_log_alone(directory) for directory in unfinished] if any(run.resumed_from for run in runs) else []
    whole = join(runs, [log for log in logs if log is not None])
    continued = {source for run in whole for source in run.parts}
    left_out += [
        f"{directory} ({why})"
        for directory in unfinished
        if str(directory) not in continued and (why := _why_unfinished(directory)) is not None
    ]
    readable = []
    for run in whole:
        try:
            run.refuse_unreadable()
        except (ValueError, OSError) as error:
            left_out.append(f"{run.source} (cannot be read: {error})")
        else:
            readable.append(run)
    return readable, left_out


def _why_unfinished(directory: Path) -> str | None:
    """None of a command that was refused, or that is no training, and so left no log."""
    try:
        failure = mapping(directory / "failure.json")
    except (ValueError, OSError) as error:
        return f"failed, but {error}"
    if failure:
        return f"failed: {failure.get('sentence')}"
    logs = directory / "csv", directory / "wandb", *directory.glob("*.wandb")
    return "unfinished" if any(log.exists() for log in logs) else None


def run_directories(path: Path) -> Iterator[Path]:
    """Every run's directory at or below `path`, finished or not."""
    # A run's directory is known by what Hydra, our command or W&B write at its top; nothing in it is another run.
    for folder, below, files in os.walk(path):
        below.sort()
        if "summary.json" in files or {".hydra", "csv"} & set(below) or any(name.endswith(".wandb") for name in files):
            below.clear()
            yield Path(folder)


def _read(directory: Path) -> Run | None:
    if (directory / "summary.json").is_file():
        return _finished(directory)
    if (directory / ".hydra").is_dir() or (directory / "csv").is_dir():
        return None
    return offline_run(directory)


def _finished(directory: Path) -> Run:
    return _run(directory, mapping(directory / "summary.json"), configuration(directory))


def _log_alone(directory: Path) -> Run | None:
    """What a killed run has left, for a finished run that continues it; None where that is too little."""
    try:
        config = configuration(directory)
        return _run(directory, {"target": config.get("target")}, config)
    except (ValueError, OSError):
        return None


def configuration(directory: Path) -> dict[str, Any]:
    """What a run's log says of its configuration; empty before it says anything. Raises ValueError as `mapping`."""
    return mapping(directory / "csv/hparams.yaml")


def mapping(path: Path) -> dict[str, Any]:
    """A mapping in a file of JSON or YAML; empty where there is no file, or nothing in it.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        read = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} is broken: {' '.join(str(error).split())}") from None
    if not isinstance(read or {}, dict):
        raise ValueError(f"{path.name} holds no settings or figures by name")
    return read or {}


def _run(directory: Path, summary: dict[str, Any], config: dict[str, Any]) -> Run:
    return Run(str(directory), summary, config, lambda wanted: read_metrics(directory / "csv/metrics.csv", wanted))
