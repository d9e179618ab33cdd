"""Where runs are: local directories, found recursively."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .run import Run
from .series import read_metrics
from .wandb_runs import offline_run

# libyaml's parser where it is there: five hundred configurations are otherwise most of the reading.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def local_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Finished runs below `paths`, and a line for each that is left out: unfinished, or not to be read.

    Raises:
        ValueError: a path does not exist.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no directory: use one that holds runs, such as outputs.")
    runs, left_out = [], []
    directories = {directory.resolve(): directory for path in paths for directory in _directories(path)}
    for directory in directories.values():
        try:
            run = _read(directory)
        except (ValueError, OSError, yaml.YAMLError) as error:
            left_out.append(f"{directory} (cannot be read: {error})")
            continue
        if run is None:
            left_out.append(f"{directory} (unfinished)")
        else:
            runs.append(run)
    return runs, left_out


def _directories(path: Path) -> Iterator[Path]:
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
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    hparams = directory / "csv/hparams.yaml"
    config = yaml.load(hparams.read_text(encoding="utf-8"), Loader=_Loader) if hparams.is_file() else None
    return Run(
        str(directory), summary, config or {}, lambda wanted: read_metrics(directory / "csv/metrics.csv", wanted)
    )
