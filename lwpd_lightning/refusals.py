"""What coded exchange cannot do, said in one sentence before any process starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

if TYPE_CHECKING:
    import lightning.pytorch as pl

SEVERAL_OPTIMIZERS = (
    "configure_optimizers returned several optimizers: coded exchange decodes one gradient for one optimizer, so "
    "return one (its parameter groups may have settings of their own)."
)


def refuse_process_group() -> None:
    """A default process group makes Lightning and torchmetrics synchronise behind the strategy's back.

    Raises:
        MisconfigurationException: where one exists.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise MisconfigurationException(
            "A default torch.distributed process group exists, over which Lightning would exchange batches and metrics "
            "beside the code: call torch.distributed.destroy_process_group() before fit."
        )


def refuse_precision(precision: Precision) -> None:
    """Precisions whose steps every rank can make alike; what other plugins keep between steps no rank could take over.

    Raises:
        MisconfigurationException: for another precision.
    """
    name = getattr(precision, "precision", type(precision).__name__)
    if type(precision) not in (Precision, DoublePrecision, MixedPrecision, HalfPrecision) or name == "16-true":
        beside = ", whose gradients lose what is small without a scale of the loss," if name == "16-true" else ""
        raise MisconfigurationException(
            f"precision={name!r}{beside} is not supported by coded exchange: use '32-true', '64-true', 'bf16-mixed', "
            "'bf16-true' or '16-mixed'."
        )


def refuse_trainer(trainer: pl.Trainer) -> None:
    """Settings of the trainer and its module that coded exchange cannot keep.

    Raises:
        MisconfigurationException: for the first of them.
    """
    module = trainer.lightning_module
    if not module.automatic_optimization:
        raise MisconfigurationException(
            "automatic_optimization=False is not supported by coded exchange: one coded batch is one optimizer step, so"
            " let Lightning step the optimizer."
        )
    if trainer._accelerator_connector._layer_sync is not None:
        raise MisconfigurationException(
            "sync_batchnorm=True is not supported by coded exchange: use False; running statistics are averaged over "
            "the codewords that count."
        )
    if is_overridden("training_step", module) and is_param_in_hook_signature(
        module.training_step, "dataloader_iter", explicit=True
    ):
        raise MisconfigurationException(
            "training_step(dataloader_iter) is not supported by coded exchange: use training_step(batch, batch_idx)."
        )


def refuse_optimizers(optimizers: list[torch.optim.Optimizer]) -> None:
    """One optimizer, stepped once for each gradient.

    Raises:
        MisconfigurationException: for none, or one that evaluates its closure repeatedly.
    """
    if not optimizers:
        raise MisconfigurationException(
            "configure_optimizers returned no optimizer: coded exchange decodes a gradient for one, so return one."
        )
    if isinstance(optimizers[0], torch.optim.LBFGS):
        raise MisconfigurationException(
            "LBFGS evaluates several gradients in one step, which coded exchange does not support: use a first-order "
            "optimizer such as SGD or Adam."
        )
