"""The command that runs this job once more, for ranks that are started by rerunning it."""

from __future__ import annotations

import os
import subprocess
import sys

# Where relative paths of the command are from; the job may have changed directories by the time that it trains.
_STARTED_IN = os.getcwd()
# How Hydra names a configuration folder that was given as --config-dir.
_ASKED = "command-line"


def job_command() -> tuple[list[str], str]:
    """The command that runs this job once more, and where: one job of a Hydra sweep, not the sweep.

    Raises:
        ValueError: there is no script or module that could be run again, as in a notebook.
    """
    arguments, cwd = job_arguments()
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options, *_program(), *arguments], cwd


def job_arguments() -> tuple[list[str], str]:
    """The arguments of this job, by which jobs of one sweep differ, and the directory in which it was started."""
    return _hydra_job() or (sys.argv[1:], _started_in())


def _program() -> list[str]:
    """What comes between Python and the arguments."""
    import __main__

    spec = getattr(__main__, "__spec__", None)
    if spec is not None and spec.name != "__main__" and sys.argv[0] == spec.origin:
        return ["-m", spec.name.removesuffix(".__main__")]
    # A script, or a folder or an archive with a __main__.py; perhaps run by a module, a profiler say, that is not.
    script = os.path.join(_started_in(), sys.argv[0])
    runs = os.path.isfile(script) or os.path.isfile(os.path.join(script, "__main__.py"))
    if not sys.argv[0] or not hasattr(__main__, "__file__") or not runs or _in_notebook(script):
        raise ValueError(
            "start_method='rerun' runs the job's command once more for each worker, and an interactive session, a "
            "notebook or `python -c` has none: use a script or `python -m`, or, on a CPU of one machine without a "
            "GPU in sight (CUDA_VISIBLE_DEVICES=''), start_method='fork'."
        )
    return [script]


def _in_notebook(script: str) -> bool:
    """Whether ``script`` is what runs the kernel or shell that this is a cell of, and not what was run in it."""
    import __main__

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and os.path.join(_started_in(), getattr(__main__, "__file__", "")) != script


def _started_in() -> str:
    """The directory in which the command was started."""
    import __main__

    # Of a script Python itself has noted where it was.
    given, script = sys.argv[0].removeprefix("./"), getattr(__main__, "__file__", None) or ""
    if given and not os.path.isabs(given) and script.endswith(os.sep + given):
        return os.path.normpath(os.path.dirname(script.removesuffix(given)))
    return _STARTED_IN


def _hydra_job() -> tuple[list[str], str] | None:
    if "hydra" not in sys.modules:
        return None
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    quoted = config.runtime.output_dir.replace("'", "\\'")  # a directory may hold what means something to Hydra
    return [
        f"--config-name={config.job.config_name}",
        *(f"--config-dir={source.path}" for source in config.runtime.config_sources if source.provider == _ASKED),
        *config.overrides.task,
        "hydra.mode=RUN",
        f"hydra.run.dir='{quoted}'",
        "hydra.output_subdir=null",
    ], config.runtime.cwd
