"""What only the built parts of a run can tell, asked before a process starts: Lightning would ask them later."""

from __future__ import annotations

import inspect
import re
from pkgutil import resolve_name
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from omegaconf import DictConfig, ListConfig

from lwpd_lightning.injection import FaultInjector, StragglerInjector


def refuse_optimizer(node: DictConfig | None) -> None:
    """Raise ValueError for what an optimizer does not take: it is not made before the fit."""
    if node is None:
        return
    try:
        instantiate(node, _convert_="all")([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        settings = {str(name): value for name, value in node.items() if not str(name).startswith("_")}
        # Torch compares before it looks: of a word it says what cannot be compared, and not which argument it is.
        blamed = {name: value for name, value in settings.items() if _is_named(value, str(error))} or {
            name: value for name, value in settings.items() if isinstance(value, str)
        }
        said = ", ".join(f"model.optimizer.{name}={value}" for name, value in blamed.items()) or "model.optimizer"
        raise ValueError(f"{said}: {' '.join(str(error).split())}{_works(node._target_, blamed)}") from None


def _is_named(value: Any, sentence: str) -> bool:
    values = value if isinstance(value, ListConfig) else [value]
    return any(re.search(rf"(?<![\w.-]){re.escape(str(one))}(?!\w|\.\d)", sentence) for one in values)


def _works(target: str, blamed: dict[str, Any]) -> str:
    """What the optimizer itself has for the settings that it does not take."""
    parameters = inspect.signature(resolve_name(target)).parameters
    if not blamed:
        return f"; {target} takes {', '.join(name for name in parameters if name != 'params')}"
    has = [f"{name}={parameters[name].default}" for name in blamed if name in parameters]
    return f"; {target} has {', '.join(has)} where it is left out" if has else ""


def refuse_metrics(cfg: DictConfig, model: LightningModule) -> None:
    """Raise ValueError where something waits for a metric that one of our models does not log.

    Of a model that does not say what it logs, its first validation tells.
    """
    logged = vars(type(model)).get("logged")  # a subclass may log more
    if logged is None:
        return
    waits = {"target.metric": cfg.target.metric}
    for name, node in cfg.callbacks.items():
        for key in ("metric", "monitor"):
            if isinstance(node, DictConfig) and isinstance(node.get(key), str):
                waits[f"callbacks.{name}.{key}"] = node[key]
    if str(cfg.optimized_metric).startswith("val_"):
        waits["optimized_metric"] = cfg.optimized_metric
    for setting, metric in waits.items():
        if metric not in (*logged, "epoch", "step") and not metric.startswith("exchange/"):
            raise ValueError(f"{setting}={metric} is not logged by the model: use one of {', '.join(logged)}.")


def refuse_injectors(trainer: Trainer, model: LightningModule) -> None:
    """Raise ValueError for delays or deaths of workers that the run does not have: they only look at the trainer."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StragglerInjector | FaultInjector):
            callback.setup(trainer, model, "fit")
