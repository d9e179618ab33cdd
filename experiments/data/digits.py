"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.utils.data import TensorDataset

from ..given import refuse_share
from .split import SplitData


class Digits(SplitData):
    """1,797 images of handwritten digits, float32 (1, 8, 8), with int64 labels 0 to 9.

    The split is stratified by digit and depends on `split_seed` alone, so runs with several training seeds are judged
    on the same samples. Pixels are shifted and scaled by the training samples' mean and standard deviation.

    Args:
        batch_size: samples of a whole update, over all data parts of the code.
        val_share: share of the samples held out, in (0, 1).
        split_seed: seed of the split.
        val_batch_size: samples of a validation batch.

    Raises:
        ValueError: a training batch is larger than the training split, or `val_share` is outside of (0, 1).
    """

    learns = "classes"

    def __init__(self, batch_size: int, val_share: float = 0.2, split_seed: int = 0, val_batch_size: int = 512) -> None:
        super().__init__(batch_size, val_batch_size)
        refuse_share("data.val_share", val_share)
        self.val_share = val_share
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        """Load and split, once."""
        if self._splits is not None:
            return
        # A second to import, for these data alone.
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


def _dataset(images: Any, labels: Any) -> TensorDataset:
    return TensorDataset(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels, dtype=torch.int64)
    )
