"""Every preset runs two updates with real workers; what a sweep is made of is read as Hydra's sweeper reads it."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.train import run

pytestmark = pytest.mark.slow
CONF = Path(__file__).parents[2] / "conf"
QUICK = ("logger=csv", "trainer.max_steps=2")
COMPANIONS = {
    "race_gpt10m": ("model.layers=1", "model.width=12"),
    "stdlib_gpt": ("data.max_chars=20000", "trainer.val_check_interval=1", "model.layers=1", "model.width=16"),
}


def presets(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GRIDS = [preset for preset in presets("sweep") if preset != "learning_rate"]  # which Optuna proposes


@pytest.fixture(autouse=True)
def hydra_state():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def two_updates(directory: Path, *overrides: str) -> DictConfig:
    return summarised(directory, *overrides)[0]


def summarised(directory: Path, *overrides: str) -> tuple[DictConfig, dict[str, Any]]:
    cfg = compose("train", overrides=[f"paths.run_dir={directory}", *QUICK, *overrides])
    summary = run(cfg)
    assert summary["updates"] == 2
    assert summary["world_size"] == cfg.code.n
    assert summary["scheme"] == cfg.scheme.name
    assert (directory / "summary.json").is_file()
    return cfg, summary


@pytest.mark.parametrize("preset", presets("experiment"))
def test_every_experiment_runs(tmp_path, preset):
    cfg = two_updates(tmp_path, f"experiment={preset}", *COMPANIONS.get(preset, ()))

    assert cfg.task_name == preset


def test_on_a_slow_network_gradients_are_as_short_on_their_way_down_as_up(tmp_path):
    _, summary = summarised(tmp_path, "experiment=slow_network")

    # 1/60 of the gradient, and what is told beside it: in bfloat16 the decoded one alone would be 1/6.
    for sent in (summary["bytes_up_per_update_per_worker"], summary["bytes_down"] / (2 * 7)):
        assert summary["gradient_bytes"] / 65 < sent < summary["gradient_bytes"] / 30


@pytest.mark.parametrize("preset", presets("debug"))
def test_every_debugging_aid_runs(tmp_path, preset):
    two_updates(tmp_path, f"debug={preset}")


def test_the_profile_is_in_the_runs_directory(tmp_path):
    two_updates(tmp_path, "debug=profiler")

    profile = tmp_path / "fit-profile-0.txt"
    assert "run_training_batch" in profile.read_text()


def jobs(preset: str) -> list[list[str]]:
    """The overrides of each job of a sweep with seed 0."""
    cfg = compose("train", overrides=[f"sweep={preset}", "hydra.sweeper.params.seed=0"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    words = [f"{name}={values}" for name, values in cfg.hydra.sweeper.params.items()]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    return batch


@pytest.mark.parametrize("preset", GRIDS)
def test_every_job_of_a_sweep_composes_and_no_two_are_the_same(tmp_path, preset):
    composed = [
        OmegaConf.to_container(compose("train", overrides=[f"paths.run_dir={tmp_path}", *job]), resolve=True)
        for job in jobs(preset)
    ]

    assert len(composed) >= 3
    assert all(a != b for i, a in enumerate(composed) for b in composed[:i])


@pytest.mark.parametrize("preset", GRIDS)
def test_every_sweep_runs(tmp_path, preset):
    batch = jobs(preset)

    for number in {0, len(batch) // 2, len(batch) - 1}:  # all sizes, both ends and the middle of K, the dtypes
        two_updates(tmp_path / str(number), *batch[number])
