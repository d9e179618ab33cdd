"""What all data sets have in common once they are split: the record's facts and the two loaders."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader


class SplitData(LightningDataModule):
    """A training and a validation split, which ``setup`` leaves in `_splits`, with the hash of all data in `sha256`.

    Args:
        batch_size: samples of a whole update, over all data parts of the code.
        val_batch_size: samples of a validation batch.
    """

    learns: str  # what a model that is to learn from it says, too
    sha256: str

    def __init__(self, batch_size: int, val_batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        if not isinstance(val_batch_size, int) or val_batch_size < 1:
            raise ValueError(f"data.val_batch_size={val_batch_size} is no number of samples: use 1 or more.")
        self._val_batch_size = val_batch_size
        self._splits: tuple[Any, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's record says of its data: samples (or windows) in each split, SHA-256 of all of it."""
        train, val = self.splits
        return {"train_samples": len(train), "val_samples": len(val), "sha256": self.sha256}

    @property
    def splits(self) -> tuple[Any, Any]:
        """Training and validation samples."""
        self.setup()
        assert self._splits is not None
        return self._splits

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of `batch_size`; what is left over of an epoch is dropped."""
        return DataLoader(self.splits[0], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """All of the validation split, in order."""
        return DataLoader(self.splits[1], batch_size=self._val_batch_size)
