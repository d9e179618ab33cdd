"""What a sweeper that optimizes is told of a job."""

import json
import sys
from pathlib import Path

import pytest
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from experiments.sweep import optimized
from tests.commands import run
from tests.experiments.test_train_command import SHORT, train

ROOT = Path(__file__).parents[2]


class Seen(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        print("returned", job_return.return_value, flush=True)


@pytest.mark.parametrize(("summary", "told"), [({"val_acc": 0.5}, 0.5), ({"val_acc": None}, None), ({}, None)])
def test_it_is_the_figure_that_is_asked_for(summary, told):
    assert optimized(OmegaConf.create({"optimized_metric": "val_acc"}), summary) == told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "job of a sweep"])
def test_the_command_returns_the_figure(tmp_path, kind):
    # Hydra's own callback after a job sees what a sweeper sees.
    seen = "+hydra.callbacks.seen._target_=tests.experiments.test_optimized.Seen"
    words = (*SHORT, "model.hidden=[16]", "logger=csv", "optimized_metric=val_loss", seen)
    where = ("hydra.run.dir=here",) if kind == "single" else ("hydra.sweep.dir=here", "hydra.sweep.subdir=.", "-m")

    done = train(tmp_path, *words, *where)

    assert done.returncode == 0, done.stderr
    assert f"returned {json.loads((tmp_path / 'here/summary.json').read_text())['val_loss']}\n" in done.stdout


def test_optuna_is_told_the_value_of_each_trial(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    words = ("sweep=learning_rate", *SHORT, "model.hidden=[16]", "logger=csv", "hydra.sweeper.n_trials=2")
    command = [sys.executable, "-m", "experiments.train", *words, "hydra.sweep.dir=sweep"]

    done = run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})

    assert done.returncode == 0, done.stderr
    best = OmegaConf.load(tmp_path / "sweep/optimization_results.yaml")
    values = [json.loads(path.read_text())["val_acc"] for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert len(values) == 2
    assert best.best_value == max(values)
