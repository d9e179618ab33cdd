"""16-mixed's scale of the loss: gradients are computed of a scaled loss and travel as if it had not been.

Each rank has a scaler of its own. Scalers start alike and all ranks step with the same decoded gradient, so that all
find the same infinities in it, leave the same steps out and go on with the same scale; who takes over rank 0's state
takes over its scale. Codewords are of the unscaled loss all the same: they may be older than the scale is, and what
error feedback remembers outlives it. An infinity stays one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch.plugins.precision import Precision


def loss_scale(precision: Precision) -> float:
    """What this rank's losses are multiplied by before their backward."""
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    return float(scaler.get_scale()) if scaler is not None else 1.0


def scales_loss(precision: Precision) -> bool:
    """Whether losses are scaled, so that infinities are nothing unusual."""
    return isinstance(precision, MixedPrecision) and precision.scaler is not None


@torch.no_grad()
def scale_gradients(precision: Precision, parameters: Iterable[Tensor]) -> None:
    """Multiply decoded gradients by the scale, in place: the step that follows divides by it, as it always does."""
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scaler is None or not gradients:
        return
    # Multiplied by the scaler itself: a rank that has computed no loss yet has no scale before.
    scale = scaler.scale(torch.ones((), device=gradients[0].device))
    for gradient in gradients:
        gradient.mul_(scale)
