"""A language model that reads its text as a stream: an iterable dataset, whose length nobody knows.

    python -m experiments.examples.streaming_lm --strategy lwpd

Under DDP a stream is divided by whoever reads it: each process takes every n-th window. lwpd divides the batches of
one stream among its workers itself, so that every process must read all of it; no process group exists then, and the
same lines of `Windows` do that.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from .curve import Curve, exact, options

BATCH, CONTEXT = 16, 32  # windows of an update, bytes of a window
WINDOWS, VALIDATED = 320, 64  # windows of an epoch, and of validation


class Windows(IterableDataset[Tensor]):
    """Windows of a text, one byte longer than what the model sees, from window ``start`` to ``stop``."""

    def __init__(self, text: bytes, start: int, stop: int) -> None:
        self._text, self._start, self._stop = text, start, stop

    def __iter__(self) -> Iterator[Tensor]:
        rank, ranks = 0, 1
        if distributed.is_initialized():
            rank, ranks = distributed.get_rank(), distributed.get_world_size()
        return itertools.islice(self._windows(), rank, None, ranks)

    def _windows(self) -> Iterator[Tensor]:
        for window in range(self._start, self._stop):
            begin = window * CONTEXT
            yield torch.tensor(list(self._text[begin : begin + CONTEXT + 1]))


class LanguageModel(LightningModule):
    """A small causal transformer over bytes.

    Args:
        values: that a byte may have.
        width: of the layers; a multiple of 16.
        context: bytes of a window.
    """

    def __init__(self, values: int = 256, width: int = 32, context: int = CONTEXT) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(values, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, width // 16, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(width, values)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        seen = self.bytes(windows[:, :-1]) + self.places.weight
        logits = self.output(self.layers(seen, mask=self.mask, is_causal=True))
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Read on."""
        loss = self.loss(batch)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """The loss on windows that are not trained on."""
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(strategy: str = "lwpd", devices: int = 2, epochs: int = 3, seed: int = 0) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the stream.
        seed: of the weights.
    """
    seed_everything(seed, verbose=False)
    text = inspect.getsource(argparse).encode()
    # To DDP batch_size is one rank's. To lwpd it is the whole update's, which it divides itself; a strategy with
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = BATCH // devices if strategy == "ddp" else BATCH
    loader = DataLoader(Windows(text, 0, WINDOWS), batch_size=batch_size, drop_last=True)
    validation = DataLoader(Windows(text, WINDOWS, WINDOWS + VALIDATED), batch_size=BATCH)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=exact(strategy),
        max_epochs=epochs,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(), loader, validation)
    return curve


if __name__ == "__main__":
    train(**vars(options(epochs=3).parse_args()))
