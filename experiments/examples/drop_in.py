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
from lightning import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from lwpd_lightning import schemes

from .curve import Curve, options
from .streaming_lm import LanguageModel

BATCH, CONTEXT = 32, 32  # windows of an update, bytes of a window
TRAINED, VALIDATED = 960, 256  # windows


class ScheduledModel(LanguageModel):
    """A small causal transformer over bytes, with the optimizer and the schedule of a script from DDP.

    Args:
        updates: that the schedule is of.
    """

    def __init__(self, updates: int) -> None:
        super().__init__(values=128, width=64, context=CONTEXT)
        self.updates = updates

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
    loader = DataLoader(data[:TRAINED], batch_size=batch_size, shuffle=True, drop_last=True)
    validation = DataLoader(data[TRAINED:], batch_size=BATCH)

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
    trainer.fit(ScheduledModel(updates=epochs * TRAINED // BATCH), loader, validation)
    return curve


if __name__ == "__main__":
    parser = options(epochs=5, strategies=("whitened", "lwpd", "ddp", "ddp_fork"))
    parser.set_defaults(devices=4)
    train(**vars(parser.parse_args()))
