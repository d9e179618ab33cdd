"""Modules and callbacks that steer their training by Lightning's hooks, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks
from torch import nn

from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

BATCHES, EPOCHS = 4, 3


class Steered(Classifier):
    """A classifier whose loss has a weight that hooks set."""

    def __init__(self) -> None:
        super().__init__(sgd)
        self.double()
        self.weight = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        output = self.net(x)
        return nn.functional.cross_entropy(output, y) + self.weight * output.square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


class EpochStart(Steered):
    def on_train_epoch_start(self) -> None:
        self.weight = 0.3 * self.current_epoch


class EpochEnd(Steered):
    def on_train_epoch_end(self) -> None:
        self.weight = self.weight * 0.25 + self.global_step / 10


class BatchStart(Steered):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.weight = 0.1 * batch_idx + float(len(batch[0]) > 0)


class BatchEnd(Steered):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weight = 0.1 * batch_idx + float(outputs["loss"].isfinite())


class Validated(Steered):
    def on_validation_epoch_end(self) -> None:
        self.weight = 0.2 * float(self.trainer.callback_metrics["val_loss"])


class ValidatedThenEpochEnd(Validated):
    def on_train_epoch_end(self) -> None:
        self.weight += 1.0


class ValidatedBuffer(Steered):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.scale * super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.scale.mul_(0.5)


class SetByCallback(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.weight = 0.3 * trainer.current_epoch

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.weight += 0.1


class FrozenStatistics(Steered):
    """Batch normalisation that is evaluated from the first batch of the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12).double()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.norm.eval()


class SwappedActivation(Steered):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[1] = nn.ReLU()


class _Taught(Steered):
    """Follows a moving average of itself, which hooks move."""

    def teacher(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        distance = (self.net(batch[0]) - self.teacher(batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + distance


class TaughtByParameters(_Taught):
    def __init__(self) -> None:
        super().__init__()
        self.ema = Classifier(sgd, seed=5).net.double().requires_grad_(False)

    def teacher(self, x: torch.Tensor) -> torch.Tensor:
        return self.ema(x)

    def on_train_batch_end(self, *args: Any) -> None:
        for average, parameter in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            average.data.mul_(0.7).add_(parameter.data, alpha=0.3)


class TaughtByBuffer(_Taught):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema", torch.zeros(18, 12, dtype=torch.float64))

    def teacher(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.ema.T)[:, :3]

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.ema.mul_(0.9)

    def on_train_batch_end(self, *args: Any) -> None:
        self.ema.mul_(0.7).add_(self.net[0].weight.detach(), alpha=0.3)


class ChangedGradients(Steered):
    def on_after_backward(self) -> None:
        self.net[0].weight.grad *= 0.5

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.net[2].weight.grad += 0.01 * self.net[2].weight.detach()

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class ClippedWeights(Steered):
    def on_train_batch_end(self, *args: Any) -> None:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.2, 0.2)


class EverySecondStep(Steered):
    """As Lightning's documentation does it: the closure is called, the step is left out."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class WarmedUp(Steered):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)


class ShortEpochs(Steered):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class AddedGroup(Steered):
    """Trains its second layer from the second epoch on."""

    def configure_optimizers(self) -> Any:
        return sgd(self.net[0].parameters())

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters()), "lr": 0.03})


class Unfrozen(Steered):
    """Trains its first layer from the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)


class FrozenInMidEpoch(Steered):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.net[0].bias.requires_grad_(self.global_step < 5)


class GrowingBuffer(Steered):
    """Remembers how far its weights have come, in a buffer that grows and that gets another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.seen.double().mean())

    def on_train_epoch_end(self) -> None:
        mean = self.net[0].weight.detach().mean().to(self.seen.dtype)
        self.seen = torch.cat([self.seen, mean[None]]).double()


class Backbone(Steered):
    """For BackboneFinetuning: trains a head, then the layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.net[0], self.net[2]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class SparseEmbedding(Steered):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 3, sparse=True, _weight=torch.full((30, 3), 0.1, dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        rows = (batch[0][:, 0] * 5).long().clamp(0, 29)
        return super().training_step(batch, batch_idx) + (self.embedding(rows) - 1).square().mean()


@dataclass
class Case:
    """How a module is trained."""

    module: Callable[[], Steered]
    callbacks: Callable[[], list[pl.Callback]] = list
    validates: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "epoch start": Case(EpochStart),
    "epoch end": Case(EpochEnd),
    "batch start": Case(BatchStart),
    "batch end": Case(BatchEnd),
    "validation": Case(Validated, validates=True),
    "validation, then epoch end": Case(ValidatedThenEpochEnd, validates=True),
    "validation sets a buffer": Case(ValidatedBuffer, validates=True),
    "callback": Case(Steered, lambda: [SetByCallback()], validates=True),
    "norm evaluated in a hook": Case(FrozenStatistics),
    "activation swapped": Case(SwappedActivation),
    "teacher of parameters": Case(TaughtByParameters),
    "teacher in a buffer": Case(TaughtByBuffer),
    "gradients changed": Case(ChangedGradients),
    "weights clipped": Case(ClippedWeights),
    "every second step": Case(EverySecondStep),
    "warm-up in optimizer_step": Case(WarmedUp),
    "short epochs": Case(ShortEpochs),
    "group added": Case(AddedGroup),
    "unfrozen": Case(Unfrozen),
    "frozen in mid-epoch": Case(FrozenInMidEpoch),
    "growing buffer": Case(GrowingBuffer),
    "BackboneFinetuning": Case(
        Backbone,
        lambda: [
            callbacks.BackboneFinetuning(
                1, backbone_initial_lr=0.02, lambda_func=lambda epoch: 1.0, should_align=False, verbose=False
            )
        ],
    ),
    "ModelPruning": Case(Steered, lambda: [pruning(False)]),
    "ModelPruning, lottery ticket": Case(Steered, lambda: [pruning(True)]),
    "sparse gradients": Case(SparseEmbedding),
    "accumulated": Case(EpochStart, settings={"accumulate_grad_batches": 3}),
    "accumulated by a moving average": Case(TaughtByBuffer, settings={"accumulate_grad_batches": 2}),
    "accumulation scheduled": Case(EpochEnd, lambda: [callbacks.GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})]),
    "StochasticWeightAveraging": Case(
        Steered, lambda: [callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]
    ),
}


def pruning(lottery_ticket: bool) -> pl.Callback:
    return callbacks.ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=lottery_ticket)


def train(name: str, **settings: Any) -> tuple[torch.Tensor, pl.Trainer]:
    """Train a case; returns its parameters and buffers, and the trainer."""
    case = CASES[name]
    model = case.module()
    trainer = quiet_trainer(
        max_epochs=EPOCHS, limit_train_batches=BATCHES, precision="64-true",
        **{"callbacks": case.callbacks(), **case.settings, **settings},
    )  # fmt: skip
    data = classification(dtype=torch.float64)
    trainer.fit(model, loader(data), loader(data) if case.validates else None)
    state = [*model.parameters(), *model.buffers()]
    return torch.cat([tensor.detach().double().flatten() for tensor in state]), trainer
