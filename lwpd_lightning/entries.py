"""The fits, validations and tests of one job, counted alike on every rank, and what rank 0's led to.

Only rank 0 validates and tests, and a process that was started for a later fit does not make the earlier ones again.
What such a call returned on rank 0, and which checkpoints a fit left there, every other rank is told, so that a script
goes the same way everywhere.
"""

from __future__ import annotations

import atexit
import json
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from lwpd_lightning.command import job_arguments

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lwpd_lightning.links.rendezvous import Rendezvous

_CHECKPOINTS = ("best_model_path", "last_model_path", "best_model_score")
# How long rank 0's process stays for the others to read what its last call led to.
_FAREWELL_S = 10.0


class Entries:
    """What this process has entered so far.

    Attributes:
        fits: fits that were entered.
        store: where other ranks read what rank 0's calls led to; None: nobody is there.
        readers: ranks that do, and that rank 0 should not leave behind.
    """

    def __init__(self) -> None:
        self.fits = 0
        self.store: Rendezvous | None = None
        self.readers: list[int] = []
        self._entered = 0
        self._outcomes: list[str] = []
        self._waits = False

    def enter(self, *, fit: bool) -> int:
        """Count a call of fit, validate, test or predict; returns its number."""
        self._entered += 1
        self.fits += fit
        return self._entered - 1

    def attach(self, store: Rendezvous, readers: list[int]) -> None:
        """Tell what has ended, and will end, to whoever reads ``store``; wait at this process' end for ``readers``."""
        self.store, self.readers = store, readers
        for entry, outcome in enumerate(self._outcomes):
            store.tell(entry, outcome)
        if readers and not self._waits:
            self._waits = True
            atexit.register(self._farewell)

    def detach(self) -> None:
        """Nobody reads any more."""
        self.store = None

    def ended(self, entry: int, outcome: str) -> None:
        """Call number ``entry`` led to this on rank 0; calls that failed, or were made inside it, led to nothing."""
        while len(self._outcomes) < entry:
            self._outcomes.append("{}")
        self._outcomes.append(outcome)
        if self.store is not None:
            self.store.tell(entry, outcome)

    def _farewell(self) -> None:
        if self.store is not None and len(self._outcomes) == self._entered:
            self.store.await_readers(self._entered - 1, self.readers, _FAREWELL_S)


_jobs: defaultdict[tuple[str, ...], Entries] = defaultdict(Entries)


def entries() -> Entries:
    """Those of the job that this process runs, whatever trainer they belong to: every rank counts the same."""
    return _jobs[tuple(job_arguments()[0])]


def outcome_of(trainer: pl.Trainer, returned: Any) -> str:
    """What a call of the trainer led to, in words."""
    checkpoint = trainer.checkpoint_callback
    return json.dumps(
        {
            "returned": returned if isinstance(returned, list) and _of_numbers(returned) else None,
            "metrics": {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1},
            "checkpoint": {name: _plain(getattr(checkpoint, name, None)) for name in _CHECKPOINTS},
        }
    )


def adopt(trainer: pl.Trainer, outcome: str) -> Any:
    """Let a trainer on another rank look as rank 0's does after a call; gives what the call returned there."""
    told = json.loads(outcome)
    metrics = {name: torch.tensor(value) for name, value in told.get("metrics", {}).items()}
    trainer._logger_connector._callback_metrics.update(metrics)
    checkpoint = trainer.checkpoint_callback
    for name, value in told.get("checkpoint", {}).items():
        if value is not None and hasattr(checkpoint, name):
            setattr(checkpoint, name, torch.tensor(value) if name == "best_model_score" else value)
    return told.get("returned")


def _of_numbers(returned: list[Any]) -> bool:
    return all(isinstance(x, dict) and all(isinstance(v, (int, float)) for v in x.values()) for x in returned)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
