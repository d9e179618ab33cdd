"""`resume=auto`: a run goes on from the newest checkpoint in its own directory, where that is of this configuration."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from .checkpoints import BEFORE, LAST, RECENT
from .processes import is_attempt
from .stopping import speaks_for_the_run

# What rank 0 goes on from, for the processes that it starts: what they would find later is newer.
ENV_RESUMED = "LWPD_RESUMED"
# Its name while this part of the run lasts, since what it was found as is written over.
RESUMED = "resumed.ckpt"
_KEY = "lwpd_settings"
# What a run is called, where it writes and what it shows changes nothing of what it trains.
_IDLE = {"paths", "logger", "sweep", "task_name", "tags", "optimized_metric", "ckpt_path", "resume", "restarts"}
_IDLE_CALLBACKS = {"exchange", "checkpoint", "last", "recent", "target", "progress", "live"}


class SettingsInCheckpoints(Callback):
    """Writes the settings of a run into its checkpoints, by which `resume=auto` knows them.

    Args:
        cfg: the run's configuration.
    """

    on_workers = False

    def __init__(self, cfg: DictConfig) -> None:
        self._settings = json.dumps(_settings(cfg), sort_keys=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add them."""
        checkpoint[_KEY] = self._settings


@contextlib.contextmanager
def resumed(cfg: DictConfig) -> Iterator[None]:
    """Within, `cfg.ckpt_path` is what `resume=auto` goes on from; without `resume=auto` it stays as it is.

    A job of a sweep that was stopped, and a run that is started again, go on in the same way.

    Where the directory holds no checkpoint, it stays as it is, too.

    Raises:
        ValueError: the directory holds checkpoints of another configuration alone, or none that can be read.
    """
    if cfg.resume is None and not is_attempt() and not cfg.sweep.continues:
        yield
        return
    told = os.environ.get(ENV_RESUMED)
    path = Path(told) if told else None if told is not None else _newest(cfg)
    if told is None and speaks_for_the_run():
        path = _kept(path) if path is not None else None
        os.environ[ENV_RESUMED] = str(path or "")
    if path is not None:
        cfg.ckpt_path = str(path)
    try:
        yield
    finally:
        if told is None:
            os.environ.pop(ENV_RESUMED, None)


def _newest(cfg: DictConfig) -> Path | None:
    """The checkpoint of most updates in the run's directory; None where there is none."""
    folder = Path(cfg.paths.run_dir).absolute() / "checkpoints"
    there = [path for path in (folder / name for name in (LAST, RECENT, BEFORE)) if path.is_file()]
    read = {path: found for path in there if (found := _read(path)) is not None}
    if there and not read:
        raise ValueError(
            f"resume=auto: no checkpoint in {folder} can be read, remove the folder to begin anew, or use ckpt_path=."
        )
    newest = max(read, key=lambda path: (read[path]["global_step"], path.stat().st_mtime_ns), default=None)
    if newest is None:
        return None
    if _KEY not in read[newest]:
        raise ValueError(f"resume=auto: {newest} does not say of which configuration it is, use ckpt_path={newest}.")
    difference = _difference(json.loads(read[newest][_KEY]), json.loads(json.dumps(_settings(cfg))))
    if difference is not None:
        raise ValueError(
            f"resume=auto: {newest} is of another configuration ({difference}), use another hydra.run.dir, or "
            f"ckpt_path={newest} with another hydra.run.dir to go on from it all the same."
        )
    return newest


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file leads to
        warnings.warn(f"{path} cannot be read and is left out: {error}", stacklevel=2)
        return None
    return found


def _kept(path: Path) -> Path:
    """The same file under a name that nothing writes over."""
    kept = path.with_name(RESUMED)
    unfinished = path.with_name(f".{RESUMED}")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:  # a file system without links
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, kept)
    return kept


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides what the run trains."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {name: value for name, value in resolved.items() if name not in _IDLE}
    settings["trainer"].pop("default_root_dir", None)
    callbacks = settings.pop("callbacks", None) or {}
    settings["callbacks"] = {name: value for name, value in callbacks.items() if name not in _IDLE_CALLBACKS}
    return settings


def _difference(there: Any, here: Any, path: str = "") -> str | None:
    """The first setting in which two differ, in words; None where they are the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            found = _difference(there.get(name), here.get(name), f"{path}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if there == here else f"{path}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
