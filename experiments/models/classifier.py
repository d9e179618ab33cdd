"""Classification: the LightningModule, and networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..given import refuse_widths
from .schedule import OptimizerFactory, ScheduleFactory, optimizers


class Classifier(LightningModule):
    """Cross-entropy training of `net` from (samples, labels); logs `train_loss`, `val_loss` and `val_acc`.

    Args:
        net: samples, such as float images (N, C, H, W), to logits (N, classes).
        classes: number of classes.
        optimizer: parameters to optimizer.
        schedule: (optimizer, total_steps=) to a scheduler that steps at every update; None for a constant rate.
        label_smoothing: share of each training label that is spread over all classes (Szegedy et al., 2016).
    """

    learns = "classes"
    logged = ("train_loss", "val_loss", "val_acc")

    def __init__(
        self,
        net: nn.Module,
        classes: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.net = net
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.val_loss = MeanMetric()
        self.val_acc = MulticlassAccuracy(classes, average="micro")

    def forward(self, samples: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.net(samples)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the batch, in nats."""
        samples, labels = batch
        loss = cross_entropy(self(samples), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the epoch's metrics."""
        samples, labels = batch
        logits = self(samples)
        self.val_loss.update(cross_entropy(logits, labels), weight=len(labels))
        self.val_acc.update(logits, labels)
        self.log("val_loss", self.val_loss, batch_size=len(labels))
        self.log("val_acc", self.val_acc, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from the configuration."""
        return optimizers(self, self.optimizer_factory, self.schedule_factory)


def mlp(shape: Sequence[int], hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Fully connected ReLU network on flattened images of `shape` (C, H, W).

    Raises:
        ValueError: a hidden layer has no units.

    >>> import torch
    >>> mlp([1, 8, 8], [32], 10)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    refuse_widths(hidden=hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(shape)
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def cnn(shape: Sequence[int], channels: Sequence[int], hidden: int, classes: int) -> nn.Sequential:
    """Convolutions (3x3, ReLU, 2x2 max-pooling after each) and one hidden layer, for images of `shape` (C, H, W).

    There is no batch normalisation: its statistics would be those of each worker's own data parts.

    Raises:
        ValueError: a size is not 1 or more; no convolution, or so many that they would pool the image away.

    >>> import torch
    >>> cnn([3, 32, 32], [4, 8], 16, 10)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    """
    refuse_widths(channels=channels, hidden=hidden)
    before, height, width = shape
    most = min(height, width).bit_length() - 1
    if not 1 <= len(channels) <= most:
        raise ValueError(
            f"model.channels={list(channels)} does not fit {height}x{width} images: use 1 to {most} convolutions."
        )
    layers: list[nn.Module] = []
    for count in channels:
        layers += [nn.Conv2d(before, count, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = count, height // 2, width // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def mlp_classifier(
    shape: Sequence[int],
    hidden: Sequence[int],
    classes: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    label_smoothing: float = 0.0,
) -> Classifier:
    """`Classifier` over `mlp`."""
    return Classifier(mlp(shape, hidden, classes), classes, optimizer, schedule, label_smoothing)


def cnn_classifier(
    shape: Sequence[int],
    channels: Sequence[int],
    hidden: int,
    classes: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    label_smoothing: float = 0.0,
) -> Classifier:
    """`Classifier` over `cnn`."""
    return Classifier(cnn(shape, channels, hidden, classes), classes, optimizer, schedule, label_smoothing)
