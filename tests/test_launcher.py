"""The command that runs a job once more."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from lwpd_lightning.launcher import job_command

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
