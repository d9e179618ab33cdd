"""What the examples share: the losses that they return, and the options of their commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lwpd_lightning import LWPDStrategy


class Curve(Callback):
    """The losses of a fit, and a line for each epoch.

    The module logs ``train_loss`` and ``val_loss`` with ``sync_dist=True``: both strategies then give rank 0 the mean
    over all ranks.

    Attributes:
        training: mean loss of each update's batch.
        validation: mean loss on the validation set after each epoch.
    """

    on_workers = False  # lwpd's other ranks have no log

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Keep the update's loss."""
        self.training.append(float(trainer.callback_metrics["train_loss"]))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep the epoch's loss, and print it."""
        if trainer.sanity_checking:
            return
        self.validation.append(float(trainer.callback_metrics["val_loss"]))
        if trainer.is_global_zero:
            losses = f"train_loss {self.training[-1]:.5f}  val_loss {self.validation[-1]:.5f}"
            print(f"epoch {trainer.current_epoch}  update {trainer.global_step:3d}  {losses}", flush=True)


def exact(strategy: str) -> str | LWPDStrategy:
    """What a Trainer is given for "lwpd" or "ddp", so that the two train the same: the exact code, in float32.

    ``strategy="lwpd"`` alone sends 1.6 bits a value.
    """
    return LWPDStrategy(compressor="plain") if strategy == "lwpd" else strategy


def options(epochs: int, strategies: Sequence[str] = ("lwpd", "ddp")) -> argparse.ArgumentParser:
    """The words that every example understands; the first strategy is the default."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--strategy", choices=strategies, default=strategies[0], help="what exchanges gradients")
    parser.add_argument("--devices", type=int, default=2, help="processes")
    parser.add_argument("--epochs", type=int, default=epochs, help="over the training set")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    return parser
