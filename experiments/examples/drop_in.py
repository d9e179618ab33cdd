"""A script from DDP on slow links: a transformer, AdamW, warm-up and decay, clipping; only the strategy is another.

    python -m experiments.examples.drop_in --strategy ddp
    python -m experiments.examples.drop_in --strategy lwpd
    python -m experiments.examples.drop_in --strategy whitened

Gradients travel at 1.6 bits a value, in the optimizer's own metric, so that its learning rate, betas, schedule and
clipping stay what they were: "whitened" whole ones, "lwpd" by the paper's code, half as long at twice the computing.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lwpd_lightning import schemes

from .curve import Curve, options

BATCH, CONTEXT = 32, 32  # windows of an update, bytes of a window
TRAINED, VALIDATED = 960, 256  # windows


class LanguageModel(LightningModule):
    """A small causal transformer over bytes.

    Args:
        updates: that the schedule is of.
    """

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates
        self.bytes, self.places = nn.Embedding(128, 64), nn.Embedding(CONTEXT, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(64, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        seen = self.bytes(windows[:, :-1]) + self.places.weight
        logits = self.output(self.layers(seen, mask=self.mask, is_causal=True))
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Read on."""
        loss = self.loss(batch[0])
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The loss on windows that are not trained on."""
        self.log("val_loss", self.loss(batch[0]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW, whose rate rises for a tenth of the updates and falls along a cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=4e-3, total_steps=self.updates, pct_start=0.1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def windows() -> Tensor:
    """(TRAINED + VALIDATED, CONTEXT + 1) bytes of Python's own library, in a fixed random order."""
    text = "".join(ast.unparse(ast.parse(inspect.getsource(module))) for module in (argparse, inspect, ast))
    told = torch.tensor([byte for byte in text.encode() if byte < 128])
    rows = told.unfold(0, CONTEXT + 1, CONTEXT)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[: TRAINED + VALIDATED]]


def train(strategy: str = "whitened", devices: int = 4, epochs: int = 5, seed: int = 0) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "whitened", or one that Lightning knows: "lwpd", "ddp".
        devices: processes.
        epochs: over the training set.
        seed: of weights and order.
    """
    seed_everything(seed, verbose=False)
    data = windows()
    # To DDP batch_size is one rank's. To ours it is the whole update's, which they divide themselves;
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = BATCH // devices if strategy.startswith("ddp") else BATCH
    loader = DataLoader(TensorDataset(data[:TRAINED]), batch_size=batch_size, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(data[TRAINED:]), batch_size=BATCH)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=schemes.whitened(devices) if strategy == "whitened" else strategy,
        max_epochs=epochs,
        gradient_clip_val=0.5,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(updates=epochs * TRAINED // BATCH), loader, validation)
    return curve


if __name__ == "__main__":
    parser = options(epochs=5, strategies=("whitened", "lwpd", "ddp", "ddp_fork"))
    parser.set_defaults(devices=4)
    train(**vars(parser.parse_args()))
