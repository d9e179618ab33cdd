"""`OnebitAdam` as a strategy: DDP's reducer in the warm-up, its compressed exchange afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.optim import Adam, Optimizer

from .local_steps import FirstAveragedPeer
from .onebit_adam import OnebitAdam, refuse_optimizers


class OnebitAdamPeer(FirstAveragedPeer):
    """1-bit Adam (Tang et al., 2021) in place of the user's Adam or AdamW, whose settings, state and schedule it takes.

    After the warm-up gradients stay each rank's own, as in DeepSpeed; clipping is of a rank's own gradient then. Errors
    are not checkpointed: a resumed fit starts them anew, as DeepSpeed does.

    Args:
        warmup_updates: how many updates are the user's own optimizer's. The authors warm up for 15 to 25 % of training.

    Raises:
        ValueError: for less than one update of warm-up, which the variance is from.
    """

    def __init__(self, warmup_updates: int = 100, **settings: Any) -> None:
        if warmup_updates < 1:
            raise ValueError(f"warmup_updates={warmup_updates} leaves no variance: use 1 or more.")
        super().__init__(warmup_updates, **settings)
        self._onebit: OnebitAdam | None = None

    def setup(self, trainer: pl.Trainer) -> None:
        """Refuse optimizers that it cannot stand for."""
        super().setup(trainer)
        refuse_optimizers(self.optimizers)
        self._onebit = None

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **settings: Any
    ) -> Any:
        """The optimizer's own step in the warm-up; a compressed one later."""
        if self.averages:
            return super().optimizer_step(optimizer, closure, model, **settings)
        assert isinstance(optimizer, Adam)
        assert self.lightning_module is not None
        result = self.precision_plugin._wrap_closure(self.lightning_module, optimizer, closure)
        began_at = time.monotonic()
        if self._onebit is None:
            self._onebit = OnebitAdam(optimizer, self.averaged_updates)
        self._onebit.step()
        self._exchanged(self._onebit.payload_bytes, began_at)
        return result
