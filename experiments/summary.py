"""`summary.json`: what one run did, for people and for the tools that compare runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .provenance import git_revision, versions

# What a run leaves of its end.
SUMMARY, FAILURE = "summary.json", "failure.json"

if TYPE_CHECKING:  # Lightning takes seconds to import, and a sweep's process needs none of it
    from .job import Job

# Measured by ExchangeMonitor; null for a scheme that has none. bytes_up_per_update_per_worker is of a codeword that
# travels whole, or of all that a rank sends in its all-reduces.
EXCHANGE = (
    "bytes_up",
    "bytes_down",
    "bytes_up_per_update_per_worker",
    "staleness_mean",
    "staleness_max",
    "inclusion_rate",
    "failures",
    "late_codewords",
    "dropped_codewords",
    "resyncs",
    "wait_s_mean",
    "compute_s_mean",
    "arrivals_mean",
    "decoded_share_mean",
    "startup_s",
    "fit_s",
)
# Those of every summary that are numbers, as far as they are measured.
FIGURES = (
    *("val_acc", "val_loss", "val_bpc", "time_to_target_s", "wall_s", "updates", "samples"),
    *("parameters", "gradient_bytes", "world_size"),
    *(name for name in EXCHANGE if name not in ("inclusion_rate", "failures")),
)


def summarise(cfg: DictConfig, job: Job, metrics: dict[str, float], wall_s: float) -> dict[str, Any]:
    """Figures of a finished run; every key is always there, null where nothing measured it.

    Of a run that was continued from a checkpoint, updates, samples, seconds and bytes are those of all its parts; means
    and counts of the exchange are of the last one.

    Args:
        cfg: the run's configuration.
        job: what was trained.
        metrics: of the finished model on the validation data.
        wall_s: seconds from the start of the job, loading and validation included.
    """
    trainer, updates = job.trainer, job.trainer.global_step
    figures = {
        "task_name": cfg.task_name,
        "tags": list(cfg.tags),
        "overrides": job_overrides(),
        "scheme": cfg.scheme.name,
        "code": _sizes(job),
        "wait_for": job.wait_for,
        "seed": cfg.seed,
        "world_size": trainer.world_size,
        "parameters": sum(p.numel() for p in job.model.parameters() if p.requires_grad),
        "gradient_bytes": sum(p.nbytes for p in job.model.parameters() if p.requires_grad),
        "updates": updates,
        "samples": updates * job.data.batch_size,
        "data": {"name": type(job.data).__name__, "batch_size": job.data.batch_size, **job.data.facts},
        "wall_s": wall_s,
        "val_acc": metrics.get("val_acc"),
        "val_loss": metrics.get("val_loss"),
        "val_bpc": metrics.get("val_bpc"),
        "target": dict(cfg.target),
        "time_to_target_s": job.timer.reached_s if job.timer else None,
        **dict.fromkeys(EXCHANGE),
        **(job.monitor.summary() if job.monitor else {}),
        "kills_to_come": kills_to_come(cfg, updates),
        "git_revision": git_revision(),
        "versions": versions(),
    }
    return job.earlier.whole(figures, cfg.ckpt_path)


def kills_to_come(cfg: DictConfig, updates: int) -> list[dict[str, int]]:
    """Whom a FaultInjector of the configuration was to kill after the last of so many updates: worker and update.

    >>> from omegaconf import OmegaConf
    >>> faults = {"_target_": "lwpd_lightning.injection.FaultInjector", "kills": {2: 100, 5: 200}}
    >>> kills_to_come(OmegaConf.create({"callbacks": {"faults": faults, "progress": None}}), updates=150)
    [{'worker': 5, 'update': 200}]
    """
    kills = [one.kills for one in (cfg.get("callbacks") or {}).values() if one is not None and one.get("kills")]
    return [
        {"worker": w, "update": at} for one in kills for w, at in one.items() if isinstance(at, int) and at >= updates
    ]


def _sizes(job: Job) -> dict[str, Any] | None:
    code = job.code
    if code is None:
        return None
    return {"family": code.family, "n": code.n, "k": code.k, "t": code.t, "A": code.data_parts, "B": code.blocks}


def job_overrides() -> list[str] | None:
    """What tells this run from others of its sweep: its overrides on the command line; None outside of Hydra."""
    return without_sweep(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def without_sweep(overrides: Sequence[str]) -> list[str]:
    """Overrides but for those that are about the sweep itself.

    >>> without_sweep(["code=lwpd_8_4_2", "sweep.resume=true", "sweep=code_size"])
    ['code=lwpd_8_4_2', 'sweep=code_size']
    """
    return [override for override in overrides if not override.startswith("sweep.")]


def write_atomically(path: Path, document: dict[str, Any]) -> None:
    """Write JSON so that a reader finds the whole file or none, even when the writer is killed."""
    text = json.dumps(document, indent=2) + "\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
