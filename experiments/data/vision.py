"""MNIST, Fashion-MNIST and CIFAR-10 as torchvision reads and downloads them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .split import SplitData

SHAPES = {"MNIST": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images kept as bytes, a quarter of their size as numbers; item i is float32 (C, H, W), shifted and scaled.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        mean: of each channel, in bytes, (C,).
        deviation: of each channel, likewise.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, deviation: Tensor) -> None:
        self.images, self.labels = images, labels
        self.mean, self.deviation = mean.view(-1, 1, 1), deviation.view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.images[index] - self.mean) / self.deviation, self.labels[index]


class Vision(SplitData):
    """A data set of torchvision with ten classes, in its own split: trained on `train`, judged on `test`.

    Pixels are shifted and scaled by each channel's mean and standard deviation over the training images. There is no
    augmentation.

    Args:
        name: "MNIST", "FashionMNIST" or "CIFAR10".
        root: folder of the files, which are downloaded to it where they are missing.
        batch_size: samples of a whole update, over all data parts of the code.
        download: False: never ask the network.

    Raises:
        ValueError: an unknown name; later, in `setup`: the files cannot be had, or a training batch is larger than the
            training split.
        ModuleNotFoundError: in `setup`, where torchvision is not installed.
    """

    learns = "classes"

    def __init__(self, name: str, root: str, batch_size: int, download: bool = True) -> None:
        super().__init__(batch_size, val_batch_size=512)
        if name not in SHAPES:
            raise ValueError(f"data.name={name} is unknown: use one of {', '.join(SHAPES)}.")
        self.name, self.root, self.download = name, root, download

    def setup(self, stage: str | None = None) -> None:
        """Read, and download where needed, once."""
        if self._splits is not None:
            return
        # Of the extra `vision`.
        from torchvision import datasets

        kind = getattr(datasets, self.name)
        train, train_labels = self._read(kind, train=True)
        val, val_labels = self._read(kind, train=False)
        if not 1 <= self.batch_size <= len(train):
            raise ValueError(
                f"data.batch_size={self.batch_size} is no batch of {len(train)} samples: use 1 to {len(train)}."
            )
        digest = hashlib.sha256()
        for tensor in (train, train_labels, val, val_labels):
            digest.update(tensor.numpy().tobytes())
        self.sha256 = digest.hexdigest()
        mean, deviation = _statistics(train)
        self._splits = (Images(train, train_labels, mean, deviation), Images(val, val_labels, mean, deviation))

    def _read(self, kind: Any, *, train: bool) -> tuple[Tensor, Tensor]:
        try:
            read = kind(self.root, train=train, download=self.download)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"data.name={self.name} is not in data.root={Path(self.root).absolute()} and was not downloaded "
                f"({reason}): put its files there, or use data=digits, which needs no network."
            ) from None
        pixels = torch.as_tensor(read.data)
        # MNIST's have no channel dimension, CIFAR's have it last.
        images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        return images.contiguous(), torch.as_tensor(read.targets, dtype=torch.int64)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (N, C, H, W) bytes, (C,) float32 each, from exact sums."""
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64)
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        deviations.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    return torch.stack(means).float(), torch.stack(deviations).float()
