"""One W&B run for each training run, by Lightning's WandbLogger: what it is called, and what it is told at its ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig

from lwpd_lightning import LWPDStrategy

from .comparison.find import local_runs
from .comparison.groups import group
from .comparison.wandb_runs import RESULT
from .processes import as_typed

_STEP = "trainer/global_step"
_LOSSES = {"val_loss": "min", "train_loss": "min"}


def identity(cfg: DictConfig, code: str) -> dict[str, Any]:
    """Arguments of the WandbLogger that follow from the run: name, tags and, where it continues a run, that one's id.

    Args:
        cfg: the run's configuration.
        code: what the code is called, for example "lwpd(8,4,2)".
    """
    return {
        "name": f"{cfg.scheme.name} {code} seed {cfg.seed}",
        "tags": [cfg.scheme.name, code, *cfg.tags],
        "id": _id_beside(Path(cfg.ckpt_path)) if cfg.ckpt_path is not None else None,
    }


def refuse_uploads(cfg: DictConfig) -> None:
    """Raises ValueError where `logger.log_model` asks for checkpoints at W&B that cannot be there."""
    if not cfg.logger.get("log_model"):
        return
    if cfg.logger.log_model not in (True, "all"):
        raise ValueError(f"logger.log_model={cfg.logger.log_model} is unknown: use true, all or false.")
    if cfg.logger.mode != "online":
        raise ValueError(
            f"logger.log_model={as_typed(cfg.logger.log_model)} uploads checkpoints as the run goes, and "
            f"logger.mode={cfg.logger.mode} does not: use logger.mode=online, or leave it out."
        )
    if cfg.callbacks.get("checkpoint") is None:
        raise ValueError(
            f"logger.log_model={as_typed(cfg.logger.log_model)} uploads what callbacks.checkpoint keeps, and that is "
            "null: leave one of them out."
        )


def hush(loggers: Iterable[Logger]) -> None:
    """Leave out an argument of Lightning's that says nothing, and that W&B warns of: it was a run's first line."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger._wandb_init.pop("anonymous", None)


def begin(loggers: Iterable[Logger], target: Mapping[str, Any]) -> None:
    """Say which way each metric is better, and that all are drawn against the update.

    Args:
        loggers: the run's.
        target: `target` of its configuration: the metric that is to be reached, and its mode, "max" or "min".
    """
    for logger in _of_wandb(loggers):
        logger.experiment.define_metric("exchange/*", step_metric=_STEP, step_sync=True)
        for metric, best in {**_LOSSES, target["metric"]: target["mode"]}.items():
            logger.experiment.define_metric(metric, step_metric=_STEP, step_sync=True, summary=best)


def conclude(trainer: Trainer, summary: dict[str, Any], directory: Path) -> None:
    """Give the run `summary`'s figures, as result/..., and its pictures, which are also kept in `directory`.

    Call it when the directory holds summary.json.
    """
    loggers = list(_of_wandb(trainer.loggers))
    if not loggers:
        return
    figures = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
    pictures = [*_pictures(directory), *_code(trainer.strategy, directory)]
    for logger in loggers:
        for path in pictures:
            logger.log_image(f"figures/{path.stem}", [str(path)], step=trainer.global_step)
        logger.experiment.summary.update({f"{RESULT}{name}": value for name, value in figures.items()})


def _pictures(directory: Path) -> list[Path]:
    """Draw the learning curve and the arrivals, as far as they were logged: a comparison of one run."""
    # matplotlib takes a second to import, and a run without W&B draws nothing.
    from .comparison import curves, timeline, workers

    groups = group(local_runs([directory])[0], ["scheme"])
    drawn = []
    if not curves.draw(directory / "learning_curve.png", groups, "updates"):
        drawn.append(directory / "learning_curve.png")
    if workers.monitored(groups):
        timeline.draw(directory / "arrivals.png", groups)
        drawn.append(directory / "arrivals.png")
    return drawn


def _code(strategy: Strategy, directory: Path) -> list[Path]:
    """Draw the code as `experiments.describe` does; nothing of a scheme without one."""
    # As in _pictures.
    from .drawing import draw

    if not isinstance(strategy, LWPDStrategy):
        return []
    settings = strategy.settings.resolved(strategy.code.n + strategy.settings.dedicated_coordinator)
    draw(strategy.code, settings.waits[1], directory / "code.png")
    return [directory / "code.png"]


def _of_wandb(loggers: Iterable[Logger]) -> Iterable[WandbLogger]:
    return (logger for logger in loggers if isinstance(logger, WandbLogger))


def _id_beside(checkpoint: Path) -> str | None:
    # A checkpoint of ours lies in <run>/checkpoints, and W&B names its files in <run>/wandb by the id.
    records = checkpoint.resolve().parents[1].glob("wandb/*run-*/run-*.wandb")
    newest = max(records, key=lambda record: record.stat().st_mtime, default=None)
    return newest.stem.removeprefix("run-") if newest is not None else None
