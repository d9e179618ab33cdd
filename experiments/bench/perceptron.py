"""The model that benches on one machine train: fully connected, on 64 inputs and 10 classes."""

from __future__ import annotations

import itertools
from typing import Any

import lightning.pytorch as pl
import torch


class Perceptron(pl.LightningModule):
    """Two hidden layers with ReLU, under SGD.

    Args:
        hidden: their widths.
        sgd: settings of the optimizer.
    """

    def __init__(self, hidden: tuple[int, int], **sgd: float) -> None:
        super().__init__()
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise([64, *hidden, 10])]
        self.net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        self._sgd = sgd

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross-entropy; nothing is logged, which would cost time."""
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), **self._sgd)  # type: ignore[arg-type]
