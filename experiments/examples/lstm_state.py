"""An LSTM that keeps its hidden state from batch to batch: truncated backpropagation through a long text.

    python -m experiments.examples.lstm_state --strategy lwpd

Row i of a batch goes on where row i of the batch before ended, so a rank must meet the same rows each time. DDP's ranks
do. So do lwpd's workers under a code that gives each of them one data part, and where every update waits for all of
them: a worker that had two parts would go on in one row with the state of another, and one that was left behind would
miss what it skipped.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from lwpd_lightning import LWPDStrategy, uncoded

from .curve import Curve, options

ROWS, CONTEXT = 16, 24  # rows of an update, bytes of each
STEPS, VALIDATED = 30, 8  # batches of an epoch, and of validation


class Rows(Dataset[Tensor]):
    """A text in `ROWS` rows that are read side by side; sample s is the next piece of row s mod `ROWS`."""

    def __init__(self, text: bytes, first: int, steps: int) -> None:
        row = len(text) // ROWS
        self._rows = [torch.tensor(list(text[i * row : (i + 1) * row])) for i in range(ROWS)]
        self._first, self._steps = first, steps

    def __len__(self) -> int:
        return self._steps * ROWS

    def __getitem__(self, sample: int) -> Tensor:
        begin = (self._first + sample // ROWS) * CONTEXT
        return self._rows[sample % ROWS][begin : begin + CONTEXT + 1]


class Reading(Sampler[int]):
    """The samples of a process's own rows in their order: under DDP each rank has some rows.

    There is no process group under lwpd, which divides the batches itself, so that all rows are there.
    """

    def __iter__(self) -> Iterator[int]:
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if _divided() else (0, 1)
        own = range(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        return (step * ROWS + row for step in range(STEPS) for row in own)

    def __len__(self) -> int:
        return STEPS * ROWS // (distributed.get_world_size() if _divided() else 1)


def _divided() -> bool:
    return distributed.is_available() and distributed.is_initialized()


class Recurrent(LightningModule):
    """An LSTM over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True)
        self.output = nn.Linear(48, 256)
        self.hidden: tuple[Tensor, Tensor] | None = None

    def loss(self, rows: Tensor, hidden: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mean cross-entropy of the next byte, in nats, and the state after the last one."""
        states, (h, c) = self.lstm(self.bytes(rows[:, :-1]), hidden)
        return F.cross_entropy(self.output(states).flatten(0, 1), rows[:, 1:].flatten()), (h.detach(), c.detach())

    def on_train_epoch_start(self) -> None:
        """The text begins again."""
        self.hidden = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Read on, from where the last batch ended."""
        loss, self.hidden = self.loss(batch, self.hidden)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """The loss on rows that are not trained on, each piece from a fresh state."""
        self.log("val_loss", self.loss(batch, None)[0], sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def train(strategy: str = "lwpd", devices: int = 2, epochs: int = 3, seed: int = 0) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the text.
        seed: of the weights.
    """
    seed_everything(seed, verbose=False)
    text = inspect.getsource(argparse).encode()
    # To DDP batch_size is one rank's. To lwpd it is the whole update's, which it divides itself; a strategy with
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = ROWS // devices if strategy == "ddp" else ROWS
    loader = DataLoader(Rows(text, 0, STEPS), batch_size=batch_size, sampler=Reading())
    validation = DataLoader(Rows(text, STEPS, VALIDATED), batch_size=ROWS)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        # One data part for each worker: the state that it keeps is of its own rows.
        strategy=LWPDStrategy(code=uncoded(devices)) if strategy == "lwpd" else strategy,
        use_distributed_sampler=False,  # Lightning's would shuffle the rows under DDP, whatever the loader says
        max_epochs=epochs,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Recurrent(), loader, validation)
    return curve


if __name__ == "__main__":
    train(**vars(options(epochs=3).parse_args()))
