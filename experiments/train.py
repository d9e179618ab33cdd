"""Train a model with coded gradient exchange: `python -m experiments.train`, or `lwpd-train` when installed.

With `-m` (a sweep) each job is such a command of its own; see `experiments.sweep`.

Rank 0 is this process; the strategy starts the other workers and ends them, so what follows reads as single-process
Lightning code. Files go to a new folder under `outputs/` in the current directory; `summary.json` is the last one.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from .refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    import hydra

from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from . import job_label, processes, restarting, stopping, sweep
from .composed import refuse_composed, refuse_resume
from .names import CONFIG_PATH
from .sentences import alone, refuse
from .typed import options_first, refuse_words
from .wandb_online import refuse_unreachable

# Options with which Hydra shows something and runs nothing.
_SHOWING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and validate what `cfg` describes, write `summary.json` and print what the code bought.

    A run that fails leaves a `failure.json` instead, which holds the last line of its traceback.
    One that is stopped says how to continue it.

    Returns:
        The summary.

    Raises:
        CompactHydraException: the configuration cannot run; its message is one sentence that says why.
    """
    job_label.label_logs()
    try:
        with stopping.telling(Path(cfg.paths.run_dir)) as stop, contextlib.ExitStack() as resuming:
            return _trained(cfg, stop, resuming)
    except Exception as error:
        sweep.record_failure(Path(cfg.paths.run_dir), error)
        raise


def _trained(cfg: DictConfig, stop: stopping.Stop, resuming: contextlib.ExitStack) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        refuse_composed(cfg)
        refuse_unreachable(cfg.logger.get("mode", "offline"))
        # Lightning takes seconds to import, and `--help` needs none of it.
        from lwpd_lightning.launcher import watch_parent

        from .job import assemble, record_configuration
        from .panel import announce
        from .report import show
        from .resuming import resumed
        from .summary import FAILURE, SUMMARY, summarise, write_atomically
        from .targets import NotLogged
        from .wandb_run import conclude

        waiting = processes.waiting_process()
        if waiting is not None:
            watch_parent(waiting, deaf=False)
        imported = time.perf_counter()
        resuming.enter_context(resumed(cfg))
        job = assemble(cfg)
        job.earlier.started = started
        stop.trainer = job.trainer
        assembled = time.perf_counter()
    except Exception as error:
        refuse(error)
    finished = False
    try:
        record_configuration(cfg, job)
        if job.trainer.is_global_zero:
            announce(job, cfg.scheme.name)
        try:
            job.trainer.fit(job.model, datamodule=job.data, ckpt_path=cfg.ckpt_path)
        except Exception as error:
            begun = job.trainer.fit_loop.epoch_progress.total.ready
            if begun and not isinstance(error, NotLogged):  # which no model but its author knows before it validates
                raise
            refuse(error)
        if not job.trainer.is_global_zero:  # another machine's rank, which has done its part
            finished = True
            return {}
        trained = time.perf_counter()
        metrics = job.trainer.validate(job.model, datamodule=job.data, verbose=False)[0]
        ended = time.perf_counter()
        summary = summarise(cfg, job, dict(metrics), wall_s=ended - started)
        summary |= {"imports_s": imported - started, "assembly_s": assembled - imported, "judging_s": ended - trained}
        directory = Path(cfg.paths.run_dir)
        (directory / FAILURE).unlink(missing_ok=True)  # of an earlier run in the same directory
        write_atomically(directory / SUMMARY, summary)
        conclude(job.trainer, summary, directory)
        finished = True
    finally:
        _finish_wandb(exit_code=0 if finished else 1)
    show(summary, job.code, directory)
    return summary


def _finish_wandb(exit_code: int) -> None:
    # W&B marks a run that ends with another exit code than 0 as failed.
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="train")
def _command(cfg: DictConfig) -> float | None:
    if sweep.is_job_of_sweep():
        return sweep.run_job(cfg)
    with alone():
        if (sentence := refuse_resume(cfg.sweep.resume)) is not None:
            raise CompactHydraException(sentence)
        if cfg.sweep.resume:
            raise CompactHydraException("sweep.resume=true continues a sweep, and this is a single run: add -m.")
        if restarts := restarting.restarts_of(cfg):
            sys.exit(restarting.supervise(cfg, restarts))
        return sweep.optimized(cfg, run(cfg))


def _begin() -> None:
    """A first sign of life: what is imported next takes seconds."""
    words = sys.argv[1:]
    shows_only = any(word.split("=")[0] in _SHOWING for word in words)
    if shows_only or processes.is_attempt() or not stopping.speaks_for_the_run():
        return
    is_sweep = any(word in ("-m", "--multirun", "hydra.mode=MULTIRUN") or word.startswith("sweep=") for word in words)
    print("composing the jobs" if is_sweep else job_label.labelled("loading torch and Lightning"), flush=True)


def main() -> None:
    """Command line; exit status 1 and one sentence where the configuration cannot run.

    A run that is stopped ends with 143 (SIGTERM) or 130 (Ctrl-C).
    """
    if (sentence := refuse_words(sys.argv[1:])) is not None:
        raise SystemExit(sentence)
    processes.own_group()
    sys.argv[1:] = options_first(sys.argv[1:])
    _begin()
    try:
        _command()
    except sweep.Stopped as stopped:
        sweep.ended_by_a_signal(stopped)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
