"""Learning-rate schedule and the hook that installs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lightning import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[..., LRScheduler]  # (optimizer, total_steps=int)


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_share: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine down to zero at `total_steps` (Loshchilov & Hutter, 2017).

    The end matters under partial decoding: steps that go to zero average the erasures' noise out.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: updates in the whole run.
        warmup_share: share of them, in [0, 1), that the warm-up takes.

    Raises:
        ValueError: `warmup_share` is outside of [0, 1).
    """
    if not 0 <= warmup_share < 1:
        raise ValueError(f"warmup_share={warmup_share} leaves no steps to train: use a number from 0 to below 1.")
    warmup = round(warmup_share * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def optimizers(module: LightningModule, optimizer: OptimizerFactory, schedule: ScheduleFactory | None) -> Any:
    """What `configure_optimizers` returns: the optimizer and, where given, a schedule that steps at every update."""
    built = optimizer(module.parameters())
    if schedule is None:
        return built
    total_steps = module.trainer.estimated_stepping_batches
    if not math.isfinite(total_steps):
        raise ValueError(
            "trainer.max_epochs=-1 and trainer.max_steps=-1 give model.schedule no end: "
            "set one of them, or model.schedule=null."
        )
    return {
        "optimizer": built,
        "lr_scheduler": {"scheduler": schedule(built, total_steps=int(total_steps)), "interval": "step"},
    }
