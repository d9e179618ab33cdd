"""Sweeps (`-m`): each job in a process of its own, one report of all of them, and going on with a sweep that broke off.

A Hydra launcher (basic, joblib, submitit) calls the task function once for each job, in a process of its choice. That
process runs the job's own command, `hydra.mode=RUN` with the job's overrides, and waits: whatever ends a job, a kill
of its rank 0 included, ends this job alone, and no job inherits another's environment, threads or W&B run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from . import processes
from .composed import refuse_resume
from .processes import ENV_WAITING, quoted, read
from .refusals import lost
from .stopping import speaks_for_the_run
from .summary import job_overrides, without_sweep, write_atomically

SUMMARY, FAILURE = "summary.json", "failure.json"
# After Ctrl-C a job may have a checkpoint to finish.
_INTERRUPT_GRACE_S = 15.0


def is_job_of_sweep() -> bool:
    """Whether this call of the task function is one of a sweep, not a run of its own."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def run_job(cfg: DictConfig) -> float | None:
    """Run one job of a sweep as a process and wait for it; a failure is left in its `failure.json`, and not raised.

    Returns:
        What a sweeper optimizes; None where the job failed.
    """
    hydra = HydraConfig.get()
    directory, overrides = Path(hydra.runtime.output_dir), without_sweep(hydra.overrides.task)
    if cfg.sweep.resume and _finished(directory, overrides):
        print(f"job {hydra.job.num} is finished: {directory}", flush=True)
        return optimized(cfg, read(directory / SUMMARY))
    for old in (SUMMARY, FAILURE):
        (directory / old).unlink(missing_ok=True)
    words = [*overrides, f"sweep.name={quoted(Path(hydra.sweep.dir).name)}"]
    command = processes.command(hydra, directory, words)
    try:
        code = _wait(subprocess.Popen(command, cwd=hydra.runtime.cwd, env=_environment()))
    except Exception as error:  # submitit's way to end a job whose time is over, and that it does not queue again
        sentence = str(error)
    else:
        if code == 0 and (directory / SUMMARY).is_file():
            return optimized(cfg, read(directory / SUMMARY))
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        sentence = read(directory / FAILURE).get("sentence", f"rank 0 {ended}")
    failure = {"number": hydra.job.num, "overrides": overrides, "sentence": sentence}
    write_atomically(directory / FAILURE, failure)
    return None


def optimized(cfg: DictConfig, summary: dict[str, Any]) -> float | None:
    """The figure of `summary` that `optimized_metric` names; None where it has none."""
    value = summary.get(cfg.optimized_metric)
    return float(value) if isinstance(value, int | float) else None


def record_failure(directory: Path, error: BaseException) -> None:
    """Leave the last line of `error`'s traceback, or the sentence of a refusal, in the run's `failure.json`.

    Beside it stands whether something was lost that another start of the run may find again.
    """
    if not speaks_for_the_run():
        return
    if isinstance(error, CompactHydraException):
        sentence = str(error)
    else:
        sentence = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    with contextlib.suppress(OSError):
        document = {"overrides": job_overrides(), "sentence": sentence, "lost": lost(error)}
        write_atomically(directory / FAILURE, document)


class Sweep(Callback):
    """Hydra's callback around a sweep: which directory it continues, and what became of its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """With `sweep.resume=true`, continue in the directory of the newest sweep of the same overrides."""
        if (sentence := refuse_resume(config.sweep.resume)) is not None:
            sys.exit(sentence)
        if not config.sweep.resume:
            return
        directory = _to_resume(config)
        print(f"continuing the sweep in {directory}", flush=True)
        with read_write(config):
            config.hydra.sweep.dir = str(directory)
            # Each job is composed anew, from the command line's words.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which jobs failed, and exit with status 1 if any did."""
        directory = Path(config.hydra.sweep.dir)
        jobs = sorted(path.parents[1] for path in directory.rglob(".hydra/overrides.yaml"))
        failures = [read(job / FAILURE) | {"job": job} for job in jobs if not (job / SUMMARY).is_file()]
        finished = len(jobs) - len(failures)
        print(f"\n{finished} of {len(jobs)} jobs finished; the sweep is in {directory}", file=sys.stderr)
        if not failures:
            return
        for failure in sorted(failures, key=lambda failure: failure.get("number", -1)):
            words = " ".join(failure.get("overrides") or ())
            sentence = failure.get("sentence", f"left no word of its end in {failure['job']}")
            print(f"job {failure.get('number', failure['job'].name)} ({words}): {sentence}", file=sys.stderr)
        print("The same command with sweep.resume=true repeats only what has not finished.", file=sys.stderr)
        sys.exit(1)


def _to_resume(config: DictConfig) -> Path:
    given = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
    asked = Path(config.hydra.sweep.dir)
    records = [asked / "multirun.yaml"] if given else asked.parent.glob("*/multirun.yaml")
    same = [record for record in records if record.is_file() and _identity(OmegaConf.load(record)) == _identity(config)]
    if not same:
        where = asked if given else asked.parent
        sys.exit(f"sweep.resume=true: there is no sweep of the same overrides in {where}, leave it out to start one.")
    return max(same, key=lambda record: record.stat().st_mtime).parent


def _identity(config: Any) -> tuple[list[str], Any]:
    return without_sweep(config.hydra.overrides.task), OmegaConf.select(config, "hydra.sweeper.params")


def _finished(directory: Path, overrides: list[str]) -> bool:
    return read(directory / SUMMARY).get("overrides") == overrides


def _environment() -> dict[str, str]:
    added = {ENV_WAITING: str(os.getpid())}
    if "SLURM_NTASKS" in os.environ:
        # Lightning's own way to say that Slurm started this process only, and not one for each worker.
        added["SLURM_JOB_NAME"] = "interactive"
    return {**os.environ, **added}


def _wait(job: subprocess.Popen[bytes]) -> int:
    try:
        return job.wait()
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):  # the terminal's Ctrl-C has reached the job too
            job.wait(_INTERRUPT_GRACE_S)
        job.kill()
        job.wait()
        raise
