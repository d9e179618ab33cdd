"""Sweeps (`-m`): each job in a process of its own, one report of all of them, and going on with a sweep that broke off.

A Hydra launcher (basic, joblib, submitit) calls the task function once for each job, in a process of its choice. That
process runs the job's own command, `hydra.mode=RUN` with the job's overrides, and waits: whatever ends a job, a kill
of its rank 0 included, ends this job alone, and no job inherits another's environment, threads or W&B run. What tells
the sweep to stop it passes on to them (see `stopping_sweeps`).
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

from . import job_label, processes, typed_command
from .composed import refuse_resume
from .processes import ENV_WAITING, quoted, read
from .refusals import lost
from .stopping import speaks_for_the_run
from .stopping_sweeps import Stop, Stopped
from .summary import FAILURE, SUMMARY, job_overrides, without_sweep, write_atomically
from .sweep_jobs import resuming

# Where the launcher's time is over, a job may have a checkpoint to finish.
_GRACE_S = 15.0
_LOOK_S = 0.1
_stop = Stop()


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
    with _stop.running(hydra):
        if _stop.told() is not None:
            return None
        if cfg.sweep.resume and _finished(directory, overrides):
            print(f"job {hydra.job.num} is finished: {directory}", flush=True)
        elif (failure := _failure(cfg, hydra, directory, overrides)) is not None:
            write_atomically(directory / FAILURE, failure)
            return None
        return optimized(cfg, read(directory / SUMMARY))


def _failure(cfg: DictConfig, hydra: Any, directory: Path, overrides: list[str]) -> dict[str, Any] | None:
    """Run the job; what is to be said of its end, None where it has finished."""
    words = [*overrides, f"sweep.name={quoted(Path(hydra.sweep.dir).name)}"]
    if cfg.sweep.resume and "stopped" in read(directory / FAILURE):
        words.append("sweep.continues=true")
    for old in (SUMMARY, FAILURE):
        (directory / old).unlink(missing_ok=True)
    about = {"number": hydra.job.num, "overrides": overrides}
    told = job_label.environment(hydra.job.num, overrides, beside=not _stop.is_own)
    command = processes.command(hydra, directory, words)
    try:
        code = _wait(processes.start(command, hydra.runtime.cwd, {**_environment(), **told}))
    except Exception as error:  # submitit's way to end a job whose time is over, and that it does not queue again
        return {**read(directory / FAILURE), **about, "sentence": str(error)}
    except Stopped:
        sentence = "was killed, since it was told to stop again"
        write_atomically(directory / FAILURE, {**about, "sentence": sentence, "stopped": sentence})
        raise
    if code == 0 and (directory / SUMMARY).is_file():
        return None
    ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"sentence": f"rank 0 {ended}", **read(directory / FAILURE), **about}


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
        if config.sweep.resume:
            self._continue(config)
        _stop.begin(config)

    def _continue(self, config: DictConfig) -> None:
        directory = _to_resume(config)
        print(f"continuing the sweep in {directory}", flush=True)
        with read_write(config):
            config.hydra.sweep.dir = str(directory)
            # Each job is composed anew, from the command line's words.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which jobs failed, and exit with status 1 if any did."""
        _stop.end()
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
        again = typed_command.command_line(resuming(typed_command.typed()[1]))
        print(f"To repeat only what has not finished: {again}", file=sys.stderr)
        sys.exit(1)


def ended_by_a_signal(stopped: Stopped) -> None:
    """Say what became of the jobs, in the sweep's own process, and end as a stopped run does."""
    print(_stop.line(), file=sys.stderr, flush=True)
    raise SystemExit(stopped.code)


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
    passed_on = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return job.wait(_LOOK_S)
            signum = _stop.told()
            if signum is not None and not passed_on:
                job.send_signal(signum)
                passed_on = True
    except BaseException as end:
        if not isinstance(end, Stopped):
            job.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(_GRACE_S)
        job.kill()
        job.wait()
        raise
