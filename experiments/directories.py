"""The directory that a command writes to, refused in a sentence where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from .places import make


class Writable(Callback):
    """Hydra's callback before it makes the directory: what Hydra itself raises there is a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run's directory that cannot be written to."""
        _refuse_unwritable("hydra.run.dir", config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep's."""
        _refuse_unwritable("hydra.sweep.dir", config)


def _refuse_unwritable(setting: str, config: DictConfig) -> None:
    directory = Path(OmegaConf.select(config, setting))
    try:
        make(f"{setting}={directory}", directory)
    except ValueError as error:
        # Hydra turns an exception of a callback's into a warning.
        sys.exit(str(error))
