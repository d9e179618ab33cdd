"""Training in 16 bits, and the same by hand: the mean of the data parts' gradients, each as a rank computes it.

A single process that is given whole batches rounds other numbers than ranks that are given parts of them do. What must
be the same is one that is given the parts.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

PRECISIONS = ["16-mixed", "bf16-true"]
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
UPDATES, BATCH = 20, 72
# Neighbours in bfloat16 are up to 2^-7 of their size apart. A float32 sum that lies next to the middle between two goes
# to either, by what its last bits are; so does the weight that is moved by it.
NEIGHBOUR = 2.0**-7
WITHIN = {"16-mixed": 1e-5, "bf16-true": NEIGHBOUR}
# So large that the first steps are left out, and raised so often that later ones are: float16 ends at 65504.
SCALE, RAISED_AFTER = 2.0**22, 4


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().double().flatten() for p in model.parameters()])


def float16(device: str, scale: float = SCALE, raised_after: int = RAISED_AFTER) -> MixedPrecision:
    """16-mixed, which Lightning itself takes for bf16-mixed on a CPU."""
    return MixedPrecision(
        "16-mixed", device, torch.amp.GradScaler(device, init_scale=scale, growth_interval=raised_after)
    )


def scale_of(trainer: pl.Trainer) -> float:
    scaler = trainer.precision_plugin.scaler  # type: ignore[attr-defined]
    return float(scaler.get_scale())


def train(precision: str, accelerator: str = "cpu", **settings: Any) -> tuple[Tensor, pl.Trainer]:
    """Some updates on whole batches; the parameters then, and the trainer."""
    how = {"plugins": [float16(DEVICES[accelerator])]} if precision == "16-mixed" else {"precision": precision}
    model = Classifier(sgd)
    trainer = quiet_trainer(max_steps=UPDATES, max_epochs=-1, accelerator=accelerator, **how, **settings)
    trainer.fit(model, loader(classification(), BATCH))
    return weights(model), trainer


def train_parts(precision: str, parts: int, accelerator: str = "cpu") -> Tensor:
    """The parameters that the mean of the data parts' gradients leads to."""
    if precision == "16-mixed":
        return train_parts_in_float16(parts, accelerator)[0]
    return train_parts_in_bfloat16(parts, DEVICES[accelerator])


def train_parts_in_float16(parts: int, accelerator: str = "cpu") -> tuple[Tensor, float]:
    """What 16-mixed makes of it in one process, to which each data part is a batch of its own: parameters and scale.

    Each loss is divided by the number of parts before it is scaled, so that the scale has to be as many times as large
    for float16 to hold the same numbers.
    """
    model = Classifier(sgd)
    trainer = quiet_trainer(
        max_steps=UPDATES, max_epochs=-1, accumulate_grad_batches=parts, accelerator=accelerator, devices=1,
        plugins=[float16(DEVICES[accelerator], parts * SCALE)],
    )  # fmt: skip
    trainer.fit(model, loader(classification(), BATCH // parts))
    return weights(model), scale_of(trainer) / parts


def train_parts_in_bfloat16(parts: int, device: str = "cpu") -> Tensor:
    """bf16-true by hand: the float32 mean of the data parts' bfloat16 gradients, rounded once."""
    model = Classifier(sgd).to(device, torch.bfloat16)
    optimizer = model.configure_optimizers()
    x, y = (tensor.to(device) for tensor in classification().tensors)
    places = [slice(first, first + BATCH // parts) for first in range(0, len(x), BATCH // parts)]
    for update in range(UPDATES):
        gradients = []
        for part in range(parts):
            place = places[(update * parts + part) % len(places)]
            loss = torch.nn.functional.cross_entropy(model.net(x[place].bfloat16()), y[place])
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        for parameter, of_parts in zip(model.parameters(), zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.stack([g.float() for g in of_parts]).mean(dim=0).bfloat16()
        optimizer.step()
    return weights(model)
