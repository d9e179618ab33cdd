"""Image classification: the LightningModule and its networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from experiments.models.schedule import OptimizerFactory, ScheduleFactory, optimizers


class Classifier(LightningModule):
    """Cross-entropy training of `net` from (images, labels); logs `train_loss`, `val_loss` and `val_acc`.

    Args:
        net: float images (N, 1, H, W) to logits (N, classes).
        classes: number of classes.
        optimizer: parameters to optimizer.
        schedule: (optimizer, total_steps=) to a scheduler that steps at every update; None for a constant rate.
        label_smoothing: share of each training label that is spread over all classes (Szegedy et al., 2016).
    """

    learns = "classes"

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

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the batch, in nats."""
        images, labels = batch
        loss = cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the epoch's metrics."""
        images, labels = batch
        logits = self(images)
        self.val_loss.update(cross_entropy(logits, labels), weight=len(labels))
        self.val_acc.update(logits, labels)
        self.log("val_loss", self.val_loss, batch_size=len(labels))
        self.log("val_acc", self.val_acc, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from the configuration."""
        return optimizers(self, self.optimizer_factory, self.schedule_factory)


def mlp(features: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Fully connected ReLU network on flattened images.

    >>> import torch
    >>> mlp(64, [32], 10)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def cnn(channels: Sequence[int], hidden: int, classes: int) -> nn.Sequential:
    """Convolutions (3x3, ReLU, 2x2 max-pooling after each) and one hidden layer, for 8x8 images of one channel.

    There is no batch normalisation: its statistics would be those of each worker's own data parts.

    Raises:
        ValueError: more than three convolutions, which would pool an 8x8 image away.

    >>> import torch
    >>> cnn([4, 8], 16, 10)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    if not 1 <= len(channels) <= 3:
        raise ValueError(f"model.channels={list(channels)} does not fit 8x8 images: use one to three convolutions.")
    layers: list[nn.Module] = []
    before = 1
    for count in channels:
        layers += [nn.Conv2d(before, count, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = count
    side = 8 // 2 ** len(channels)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before * side * side, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def mlp_classifier(
    features: int,
    hidden: Sequence[int],
    classes: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    label_smoothing: float = 0.0,
) -> Classifier:
    """`Classifier` over `mlp`."""
    return Classifier(mlp(features, hidden, classes), classes, optimizer, schedule, label_smoothing)


def cnn_classifier(
    channels: Sequence[int],
    hidden: int,
    classes: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    label_smoothing: float = 0.0,
) -> Classifier:
    """`Classifier` over `cnn`."""
    return Classifier(cnn(channels, hidden, classes), classes, optimizer, schedule, label_smoothing)
