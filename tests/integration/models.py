"""Small modules and data that the integration tests train."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Classifier(pl.LightningModule):
    """An MLP on 12 features, 3 classes, with widths that no code's number of blocks divides everywhere."""

    def __init__(
        self, optimizer: Callable[..., Any], scheduler: Callable[..., Any] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = torch.nn.Sequential(torch.nn.Linear(12, 18), torch.nn.Tanh(), torch.nn.Linear(18, 3))
        self._optimizer, self._scheduler = optimizer, scheduler

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        output = self.net(x)
        self.log("val_loss", torch.nn.functional.cross_entropy(output, y))
        self.log("val_acc", (output.argmax(1) == y).float().mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}


def classification(samples: int = 720, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 12, generator=generator, dtype=dtype)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def loader(dataset: Dataset[Any] | None = None, batch_size: int = 72, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset if dataset is not None else classification(), batch_size=batch_size, **settings)


def quiet_trainer(**settings: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return pl.Trainer(**{**defaults, **settings})


class Until(pl.Callback):
    """Ends training ``further`` updates after something has happened: how many come until then is up to the machine.

    ``happened``: given the trainer after an update, whether it has.
    """

    on_workers = False

    def __init__(self, happened: Any, further: int = 20) -> None:
        self.happened, self.further, self.seen_at = happened, further, None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.seen_at is None and self.happened(trainer):
            self.seen_at = trainer.global_step
            self.seen()
        trainer.should_stop = self.seen_at is not None and trainer.global_step >= self.seen_at + self.further

    def seen(self) -> None:
        """It has happened."""


def lost(workers: int) -> Any:
    """That so many workers are lost, as `Until` asks for it."""
    return lambda trainer: len(trainer.strategy.failures) >= workers


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)
