"""The directory that a run or a sweep writes to, refused in a sentence where it cannot."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


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
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        # Hydra turns an exception of a callback's into a warning.
        sys.exit(f"{setting}={directory} cannot be written to ({error.strerror}): use a directory that can.")
