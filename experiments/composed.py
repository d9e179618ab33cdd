"""What can be known of a composed configuration before torch and Lightning are imported: words, numbers, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from .given import is_number, is_whole, refuse_batch, refuse_share, refuse_target, refuse_widths
from .processes import as_typed, is_attempt
from .sizes import data_parts
from .summary import FIGURES
from .typed import refuse_numbers

_WIDTHS = ("hidden", "channels", "layers", "width", "heads", "vocabulary", "context")
_MODES = ("offline", "online", "disabled")


def refuse_composed(cfg: DictConfig) -> None:
    """Check all that needs nothing to be built.

    Raises:
        ValueError: it cannot run; its sentence names the setting, its value and what would work.
    """
    if not isinstance(cfg.tags, ListConfig):
        raise ValueError(f"tags={as_typed(cfg.tags)} is no list: use tags=[{as_typed(cfg.tags)}].")
    _refuse_missing(OmegaConf.to_container(cfg, resolve=False), "")
    refuse_numbers(cfg)
    _refuse_checkpoints(cfg)
    _refuse_logger(cfg)
    _refuse_lengths(cfg.trainer)
    refuse_target(cfg.target.value, cfg.target.mode)
    _refuse_data(cfg)
    _refuse_model(cfg.model)
    _refuse_seconds(cfg)
    if cfg.optimized_metric not in (cfg.target.metric, *FIGURES):
        raise ValueError(
            f"optimized_metric={cfg.optimized_metric} is no figure of summary.json: use one of {', '.join(FIGURES)}."
        )


def refuse_resume(resume: Any) -> str | None:
    """A sentence on `sweep.resume`, where it is neither true nor false."""
    return None if isinstance(resume, bool) else f"sweep.resume={as_typed(resume)} is unknown: use true or false."


def _refuse_missing(node: Any, path: str) -> None:
    if node == "???":
        raise ValueError(f"{path} has no value: add {path}=... to the command.")
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, entry in entries:
        _refuse_missing(entry, f"{path}.{name}".lstrip("."))


def _refuse_checkpoints(cfg: DictConfig) -> None:
    if cfg.ckpt_path is not None and not Path(str(cfg.ckpt_path)).is_file():
        raise ValueError(f"ckpt_path={cfg.ckpt_path} is no file: use a run's checkpoints/last.ckpt or best.ckpt.")
    if cfg.resume not in (None, "auto"):
        raise ValueError(f"resume={as_typed(cfg.resume)} is unknown: use resume=auto, or leave it out.")
    if cfg.resume is None or not HydraConfig.initialized() or is_attempt():
        return
    directory: Any = OmegaConf.to_container(HydraConfig.get().run, resolve=False)
    if "${now:" in directory["dir"]:
        raise ValueError("resume=auto needs a directory that is the same each time: add hydra.run.dir=outputs/mine.")


def _refuse_logger(cfg: DictConfig) -> None:
    mode = cfg.logger.get("mode")  # null: W&B's own, by its environment
    if mode is not None and mode not in _MODES:
        raise ValueError(f"logger.mode={as_typed(mode)} is unknown: use one of {', '.join(_MODES)}.")


def _refuse_lengths(trainer: DictConfig) -> None:
    for name in ("max_epochs", "max_steps"):
        length = trainer.get(name)
        if length is not None and not (is_whole(length) and (length >= 1 or length == -1)):
            raise ValueError(
                f"trainer.{name}={as_typed(length)} is no length of a run: use 1 or more, or -1 for no limit."
            )
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = trainer.get(name)
        if limit is not None and not (is_number(limit) and (0 < limit <= 1 or (is_whole(limit) and limit >= 1))):
            raise ValueError(
                f"trainer.{name}={as_typed(limit)} is no number of batches: use 1 or more, a share such as 0.5, or "
                "null for all."
            )
    every = trainer.get("check_val_every_n_epoch")
    if every is not None and not (is_whole(every) and every >= 1):
        raise ValueError(f"trainer.check_val_every_n_epoch={as_typed(every)} is no number of epochs: use 1 or more.")
    clip = trainer.get("gradient_clip_val")
    if clip is not None and not (is_number(clip) and clip > 0):
        raise ValueError(f"trainer.gradient_clip_val={as_typed(clip)} is no bound: use a number above 0, or null.")


def _refuse_data(cfg: DictConfig) -> None:
    seed = cfg.data.get("split_seed", 0)
    if not is_whole(seed) or seed < 0:
        raise ValueError(f"data.split_seed={as_typed(seed)} is no seed: use a whole number of 0 or more.")
    if "val_share" in cfg.data:
        refuse_share("data.val_share", cfg.data.val_share)
    parts = data_parts(cfg)
    if "batch_size" in cfg.data and parts is not None:
        refuse_batch(cfg.data.batch_size, *parts)


def _refuse_model(model: DictConfig) -> None:
    optimizer = model.get("optimizer")
    if isinstance(optimizer, DictConfig) and "lr" in optimizer and not (is_number(optimizer.lr) and optimizer.lr > 0):
        raise ValueError(
            f"model.optimizer.lr={as_typed(optimizer.lr)} is no learning rate: use a number above 0, such as 0.001."
        )
    # A user's own model may call other things so.
    if str(model.get("_target_")).startswith(f"{__package__}.models."):
        refuse_widths(**{name: model[name] for name in _WIDTHS if name in model})
        smoothing = model.get("label_smoothing", 0.0)
        if not is_number(smoothing) or not 0 <= smoothing < 1:
            raise ValueError(
                f"model.label_smoothing={as_typed(smoothing)} is no share: use a number from 0 to below 1."
            )


def _refuse_seconds(cfg: DictConfig) -> None:
    for callback, settings in cfg.callbacks.items():
        for name in settings if isinstance(settings, DictConfig) else ():
            if str(name).endswith("_s") and isinstance(settings[name], str | bool):
                raise ValueError(f"callbacks.{callback}.{name}={as_typed(settings[name])} is no duration: use seconds.")
