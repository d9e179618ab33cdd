"""Starting workers, and the command that runs a job once more."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from lwpd_lightning.launcher import fork_workers, job_command

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def job():
    """A Hydra job of a sweep, in a directory with a name that Hydra's grammar would trip over."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["seed=3", "code=lwpd_4_2_2"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "/runs/n=4, it's [one]"
        cfg.hydra.runtime.cwd = "/somewhere"
        cfg.hydra.runtime.config_sources = [
            ConfigSourceInfo(path="/mine", schema="file", provider="command-line"),
            ConfigSourceInfo(path=str(CONF), schema="file", provider="main"),
        ]
        cfg.hydra.mode = RunMode.MULTIRUN
    HydraConfig.instance().set_config(cfg)
    yield
    HydraConfig.instance().cfg = None


def test_one_job_of_a_sweep_is_run_where_it_is(job):
    command, cwd = job_command()
    options = [word for word in command if word.startswith("--config")]
    words = command[command.index(options[-1]) + 1 :]
    said = {override.key_or_group: override.value() for override in OverridesParser.create().parse_overrides(words)}

    assert cwd == "/somewhere"
    assert options == ["--config-name=train", "--config-dir=/mine"]
    assert said["seed"] == 3
    assert said["code"] == "lwpd_4_2_2"
    assert said["hydra.mode"] == "RUN"
    assert str(said["hydra.run.dir"]).replace("\\'", "'").strip("'") == "/runs/n=4, it's [one]"
    assert said["hydra.output_subdir"] is None


def test_a_daemonic_process_forks_workers_which_end_with_it():
    """As a pool's processes are, in which a search over hyperparameters trains."""
    context = multiprocessing.get_context("fork")
    pids = context.Queue()

    def trains():
        workers = fork_workers(
            [1, 2], lambda rank: pids.put((rank, os.getpid(), multiprocessing.current_process().daemon))
        )
        assert [workers.exited(rank, wait_s=20) for rank in (1, 2)] == ["exited with code 0"] * 2
        assert multiprocessing.current_process().daemon
        fork_workers([3], lambda rank: (pids.put((rank, os.getpid(), None)), time.sleep(600)))
        time.sleep(600)

    process = context.Process(target=trains, daemon=True)
    process.start()
    told = {rank: rest for rank, *rest in (pids.get(timeout=20) for _ in range(3))}
    assert told[1][1] is told[2][1] is False  # so that they may have processes that load data
    last = told[3][0]
    assert _lives(last)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    deadline = time.monotonic() + 20
    while _lives(last):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False
