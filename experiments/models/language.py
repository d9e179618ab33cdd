"""Language modelling: the LightningModule around the transformer."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from .gpt import GPT
from .schedule import OptimizerFactory, ScheduleFactory, optimizers


class LanguageModel(LightningModule):
    """Next-character training of `net`; logs `train_loss`, `val_loss` (nats) and `val_bpc` (bits per character).

    Args:
        net: token ids (N, L) to logits (N, L, vocabulary).
        optimizer: parameters to optimizer.
        schedule: (optimizer, total_steps=) to a scheduler that steps at every update; None for a constant rate.
    """

    learns = "text"
    logged = ("train_loss", "val_loss", "val_bpc")

    def __init__(self, net: GPT, optimizer: OptimizerFactory, schedule: ScheduleFactory | None = None) -> None:
        super().__init__()
        self.net = net
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.val_loss = MeanMetric()
        self.val_bpc = MeanMetric()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, L, vocabulary)."""
        logits: Tensor = self.net(tokens)
        return logits

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, following = batch
        return cross_entropy(self(tokens).flatten(0, 1), following.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over all characters of the batch, in nats."""
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the epoch's metrics."""
        loss = self._loss(batch)
        windows = len(batch[0])
        self.val_loss.update(loss, weight=windows)
        self.val_bpc.update(loss / math.log(2), weight=windows)
        self.log("val_loss", self.val_loss, batch_size=windows)
        self.log("val_bpc", self.val_bpc, prog_bar=True, batch_size=windows)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from the configuration."""
        return optimizers(self, self.optimizer_factory, self.schedule_factory)


def gpt_language_model(
    vocabulary: int,
    context: int,
    layers: int,
    width: int,
    heads: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    dropout: float = 0.0,
) -> LanguageModel:
    """`LanguageModel` over `GPT`."""
    return LanguageModel(GPT(vocabulary, context, layers, width, heads, dropout), optimizer, schedule)
