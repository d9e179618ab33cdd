"""From a composed configuration to the objects of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from lwpd_lightning import Code, LWPDStrategy
from lwpd_lightning.callbacks import ExchangeMonitor

from . import names, wandb_run  # noqa: F401 - the configuration says ${experiments:...}
from .buildable import refuse_injectors, refuse_metrics, refuse_optimizer
from .data import SplitData
from .earlier_parts import EarlierParts, resumed_from
from .given import refuse_batch
from .peers import AllReduceMonitor, DDPPeer
from .provenance import git_revision, versions
from .resuming import SettingsInCheckpoints
from .schemes import strategy_of
from .targets import TargetTimer

Kind = TypeVar("Kind", bound=Callback)


@dataclass(frozen=True)
class Job:
    """One run, ready to train; `code` and `wait_for` are None where the scheme is not one of ours."""

    model: LightningModule
    data: SplitData
    trainer: Trainer
    timer: TargetTimer | None
    monitor: ExchangeMonitor | AllReduceMonitor | None
    earlier: EarlierParts
    code: Code | None
    wait_for: int | str | None


def assemble(cfg: DictConfig) -> Job:
    """Seed, build everything that `cfg` names and load the data; starts no process.

    Raises:
        ValueError: parts of the configuration do not go together; also as the cause of Hydra's InstantiationException.
    """
    wandb_run.refuse_uploads(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    strategy = strategy_of(cfg.scheme)
    refuse_optimizer(cfg.model.get("optimizer"))
    data = _build(cfg.data)
    model = _build(cfg.model)
    if model.learns != data.learns:
        raise ValueError(
            f"model {type(model).__name__} learns {model.learns}, data {type(data).__name__} holds {data.learns}: "
            "use model=mlp or cnn with data=digits or another of images, model=gpt with data=stdlib_text or "
            "data=shakespeare, model=transformer with data=lines."
        )
    refuse_metrics(cfg, model)
    data.setup()
    callbacks = [*_build_all(cfg.callbacks), *_build_all({"straggler": cfg.straggler})]
    if isinstance(strategy, DDPPeer):
        callbacks.append(AllReduceMonitor())
    monitor: ExchangeMonitor | AllReduceMonitor | None = (
        _only(callbacks, AllReduceMonitor) if isinstance(strategy, DDPPeer) else _only(callbacks, ExchangeMonitor)
    )
    earlier = EarlierParts(monitor)
    callbacks += [earlier, SettingsInCheckpoints(cfg)]
    trainer = instantiate(cfg.trainer, _convert_="all", _partial_=True)(
        strategy=strategy, callbacks=callbacks, logger=_loggers(cfg, strategy)
    )
    code = strategy.code if isinstance(strategy, LWPDStrategy) else None
    parts = code.data_parts if code is not None else trainer.world_size
    refuse_batch(data.batch_size, parts, f"the code's {parts} data parts" if code is not None else f"the {parts} ranks")
    refuse_injectors(trainer, model)
    return Job(
        model=model,
        data=data,
        trainer=trainer,
        timer=_only(callbacks, TargetTimer),
        monitor=monitor,
        earlier=earlier,
        code=code,
        wait_for=strategy.settings.wait_for if isinstance(strategy, LWPDStrategy) else None,
    )


def record_configuration(cfg: DictConfig, job: Job) -> None:
    """Give every logger the resolved configuration, the words that chose its groups, and what data and code run."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    resolved["data"]["facts"] = job.data.facts
    resolved |= {"git_revision": git_revision(), "versions": versions(), "resumed_from": resumed_from(cfg.ckpt_path)}
    if HydraConfig.initialized():
        choices = HydraConfig.get().runtime.choices.items()
        resolved["choices"] = {group: word for group, word in choices if not group.startswith("hydra/")}
    for logger in job.trainer.loggers:
        logger.log_hyperparams(resolved)
    wandb_run.begin(job.trainer.loggers, cfg.target)


def _loggers(cfg: DictConfig, strategy: Any) -> list[Any]:
    code = strategy.settings.code if isinstance(strategy, LWPDStrategy) else None
    name = f"n={cfg.code.n}" if code is None else f"{code.family}({code.n},{code.k},{code.t})"
    described = {"lightning.pytorch.loggers.WandbLogger": wandb_run.identity(cfg, name)}
    loggers = [_build(node, **described.get(node._target_, {})) for node in _objects(cfg.logger)]
    wandb_run.hush(loggers)
    return loggers


def _build(node: DictConfig, **arguments: Any) -> Any:
    return instantiate(node, _convert_="all", **arguments)


def _objects(nodes: Any) -> list[DictConfig]:
    # A group may hold plain settings beside its objects, and an object may be switched off with null.
    return [node for node in nodes.values() if isinstance(node, DictConfig) and "_target_" in node]


def _build_all(nodes: Any) -> list[Any]:
    return [_build(node) for node in _objects(nodes)]


def _only(callbacks: list[Callback], kind: type[Kind]) -> Kind | None:
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
