"""What coded exchange cannot do, said in one sentence before any process starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lwpd_lightning.hooks import acts_on_workers

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment

_BEFORE_VALIDATION = ("on_validation_model_eval", "on_validation_start", "on_validation_epoch_start")
_OF_VALIDATION = (*_BEFORE_VALIDATION, "on_validation_batch_start", "on_validation_batch_end")

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


def refuse_tasks(environment: ClusterEnvironment, ranks: int) -> None:
    """Under Slurm every rank is a task: of others nobody would start the process.

    Raises:
        MisconfigurationException: where there are not as many tasks as ranks.
    """
    if isinstance(environment, SLURMEnvironment) and environment.world_size() != ranks:
        raise MisconfigurationException(
            f"Slurm started {environment.world_size()} tasks (SLURM_NTASKS) and the Trainer has {ranks} ranks (devices "
            "times num_nodes): start one task a rank (srun --ntasks-per-node=<devices>), or set "
            "SLURM_JOB_NAME=interactive, and a node's first process starts the others."
        )


def refuse_precision(precision: Precision) -> None:
    """Precisions whose steps every rank can make alike; what other plugins keep between steps no rank could take over.

    Raises:
        MisconfigurationException: for another precision.
    """
    if type(precision) in (Precision, DoublePrecision) or isinstance(precision, MixedPrecision):
        return
    if not isinstance(precision, HalfPrecision):
        refused = f"the precision plugin {type(precision).__name__}"
    elif precision.precision == "16-true":
        refused = "precision='16-true', whose gradients lose what is small where the loss has no scale,"
    else:
        return
    raise MisconfigurationException(
        f"{refused} is not supported by coded exchange: use precision='32-true', '64-true', 'bf16-mixed', "
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
            "automatic_optimization=False is not supported by coded exchange: workers compute a codeword before rank "
            "0's script says which backward it belongs to and whether a step follows, so let Lightning step the "
            "optimizer."
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


def refuse_validation_hooks(trainer: pl.Trainer) -> None:
    """What acts on each batch of validation, or before the first: ``validation="shared"`` runs most elsewhere.

    Raises:
        MisconfigurationException: for the first that the module or a callback overrides.
    """
    module = trainer.lightning_module
    for hook in _OF_VALIDATION:
        by: list[object] = [module] if is_overridden(hook, module, pl.LightningModule) else []
        by += [c for c in trainer.callbacks if _acts(hook, c)]  # type: ignore[attr-defined]
        if by:
            raise MisconfigurationException(
                f"{type(by[0]).__name__}.{hook} would run for rank 0's batches alone with validation='shared': leave "
                "it out, or use validation='rank_zero'."
            )


def _acts(hook: str, callback: pl.Callback) -> bool:
    if isinstance(callback, callbacks.ProgressBar) or (hook in _BEFORE_VALIDATION and not acts_on_workers(callback)):
        return False
    return hasattr(pl.Callback, hook) and is_overridden(hook, callback, pl.Callback)


def refuse_optimizers(optimizers: list[torch.optim.Optimizer], module: pl.LightningModule) -> None:
    """One optimizer of the module's own parameters, stepped once for each dense gradient.

    Raises:
        MisconfigurationException: for none, one that evaluates its closure repeatedly, one for sparse gradients, or one
            that holds a parameter which the module does not.
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
    if isinstance(optimizers[0], torch.optim.SparseAdam):
        raise MisconfigurationException(
            "SparseAdam takes sparse gradients alone, and a decoded gradient is dense: use Adam, which then does the "
            "same for all rows that get one."
        )
    registered = {id(parameter) for parameter in module.parameters()}
    for group in optimizers[0].param_groups:
        for parameter in group["params"]:
            if id(parameter) not in registered:
                raise MisconfigurationException(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that {type(module).__name__} "
                    "does not register, so that the other ranks would not train it: assign it to the module in its "
                    "__init__ (self.name = torch.nn.Parameter(...), or a torch.nn.ParameterList)."
                )
