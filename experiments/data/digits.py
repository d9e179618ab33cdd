"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Samples = DataLoader[tuple[Tensor, ...]]


class Digits(LightningDataModule):
    """1,797 images of handwritten digits, float32 (1, 8, 8), with int64 labels 0 to 9.

    The split is stratified by digit and depends on `split_seed` alone, so runs with several training seeds are judged
    on the same samples. Pixels are shifted and scaled by the training samples' mean and standard deviation.

    Args:
        batch_size: samples of a whole update, over all data parts of the code.
        val_share: share of the samples held out, in (0, 1).
        split_seed: seed of the split.

    Raises:
        ValueError: a training batch is larger than the training split, or `val_share` is outside of (0, 1).
    """

    learns = "classes"

    def __init__(self, batch_size: int, val_share: float = 0.2, split_seed: int = 0) -> None:
        super().__init__()
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share={val_share} leaves one split empty: use a number between 0 and 1.")
        self.batch_size = batch_size
        self.val_share = val_share
        self.split_seed = split_seed
        self._splits: tuple[TensorDataset, TensorDataset] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and split, once."""
        if self._splits is not None:
            return
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train, val, train_labels, val_labels = train_test_split(
            images, labels, test_size=self.val_share, random_state=self.split_seed, stratify=labels
        )
        if not 1 <= self.batch_size <= len(train):
            raise ValueError(
                f"data.batch_size={self.batch_size} is no batch of {len(train)} samples: use 1 to {len(train)}."
            )
        mean, deviation = train.mean(), train.std()
        self.sha256 = hashlib.sha256(images.tobytes() + labels.astype("int64").tobytes()).hexdigest()
        self._splits = (
            _dataset((train - mean) / deviation, train_labels),
            _dataset((val - mean) / deviation, val_labels),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's record says of its data: samples in each split, SHA-256 of all images and labels."""
        train, val = self.splits
        return {"train_samples": len(train), "val_samples": len(val), "sha256": self.sha256}

    @property
    def splits(self) -> tuple[TensorDataset, TensorDataset]:
        """Training and validation samples."""
        self.setup()
        assert self._splits is not None
        return self._splits

    def train_dataloader(self) -> Samples:
        """Shuffled batches of `batch_size`; what is left over of an epoch is dropped."""
        return DataLoader(self.splits[0], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Samples:
        """All held-out samples, in order."""
        return DataLoader(self.splits[1], batch_size=512)


def _dataset(images: Any, labels: Any) -> TensorDataset:
    return TensorDataset(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels, dtype=torch.int64)
    )
