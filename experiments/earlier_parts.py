"""A run that was continued is one run: each checkpoint tells the part that goes on from it what had been spent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lwpd_lightning.callbacks import ExchangeMonitor

from .peers import AllReduceMonitor

# As far as a monitor counts them from zero; trainer.global_step goes on by itself.
_ADDED_UP = ("wall_s", "fit_s", "bytes_up", "bytes_down", "updates", "samples")


def resumed_from(ckpt_path: str | None) -> str | None:
    """Directory of the run whose checkpoint `ckpt_path` is: checkpoints of ours lie in <run>/checkpoints."""
    return str(Path(ckpt_path).resolve().parents[1]) if ckpt_path is not None else None


class EarlierParts(Callback):
    """Keeps in checkpoints what the run has spent so far, and adds to a summary what had been spent before.

    Args:
        monitor: what counts bytes; None where nothing does.

    Attributes:
        started: `time.perf_counter()` at the start of the job, which the callback itself is too late to see.
    """

    on_workers = False

    def __init__(self, monitor: ExchangeMonitor | AllReduceMonitor | None) -> None:
        self._monitor = monitor
        self.started = time.perf_counter()
        self._before: dict[str, float] = {}
        self._resumed_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note at which update this part begins."""
        self._resumed_at = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """What has been spent; nothing where an older checkpoint did not say what had been."""
        if self._resumed_at and not self._before:
            return {}
        figures = self._monitor.summary() if self._monitor else {}
        spent = self._added({**figures, "wall_s": time.perf_counter() - self.started})
        return {name: spent[name] for name in _ADDED_UP if name in spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the checkpoint says."""
        self._before = dict(state_dict)

    def whole(self, figures: dict[str, Any], ckpt_path: str | None) -> dict[str, Any]:
        """A part's summary as that of the whole run, and where the part began; null where its checkpoint is silent."""
        known = self._before.get
        return {
            **self._added(figures),
            "resumed_from": resumed_from(ckpt_path),
            "resumed_at_update": self._resumed_at if ckpt_path is not None else None,
            "resumed_at_s": known("wall_s"),
            "resumed_at_bytes": self._before["bytes_up"] + self._before["bytes_down"] if known("bytes_up") else None,
        }

    def _added(self, figures: dict[str, Any]) -> dict[str, Any]:
        sums = {name: figures[name] + before for name, before in self._before.items() if figures.get(name) is not None}
        return {**figures, **sums}
