"""A run of a W&B sweep, against a server of this machine, by the client and the agent that users have."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from experiments.comparison.wandb_runs import promised
from tests.commands import run
from tests.experiments.test_train_command import ROOT
from tests.experiments.test_wandb_run import RUN
from tests.experiments.wandb_server import listening
from tests.experiments.wandb_uploads import SweepServer

pytest.importorskip("wandb")
pytestmark = [pytest.mark.slow, pytest.mark.real_start]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The server, and the run's directory."""
    place = tmp_path_factory.mktemp("agent")
    sweep = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)[1])
    words = (*RUN, "trainer.max_epochs=2", "logger.log_model=true", "hydra.run.dir=run")
    sweep["command"][-1:-1] = words
    chosen = {"model.optimizer.lr": 0.05, "scheme": sweep["parameters"]["scheme"]["values"][0]}
    with listening(SweepServer(sweep=sweep, chosen=chosen)) as server:
        command = [sys.executable, "-m", "wandb", "agent", "team/lwpd-lightning/mine"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = run(command, cwd=place, env={"PYTHONPATH": str(ROOT), "PATH": path, **server.environment})
    assert done.returncode == 0, done.stderr
    assert (place / "run/summary.json").is_file(), done.stderr
    return server, place / "run"


def test_the_run_is_the_sweeps_and_has_what_was_chosen(ended):
    server, directory = ended
    (told,) = server.told.values()

    assert (told["name"], told["sweep"], told["project"]) == ("chosen", "mine", "lwpd-lightning")
    assert (told["groupName"], told["jobType"], told["displayName"]) == ("reading", "lwpd", "lwpd lwpd(4,2,2) seed 0")
    config = {name: entry["value"] for name, entry in json.loads(told["config"]).items()}
    assert config["model"]["optimizer"]["lr"] == config["model.optimizer.lr"] == 0.05
    assert promised(config)["scheme"] == json.loads((directory / "summary.json").read_text())["scheme"] == "lwpd"


def test_figures_and_pictures_are_uploaded(ended):
    server, directory = ended
    rows = [json.loads(line) for line in server.lines["wandb-history.jsonl"]]
    assert [row["trainer/global_step"] for row in rows if "exchange/loss" in row] == [1, 2, 3, 4, 5, 6]

    for picture in ("learning_curve", "arrivals", "code"):
        (sent,) = (content for name, content in server.files.items() if f"figures/{picture}" in name)
        assert sent == (directory / f"{picture}.png").read_bytes()
    figures = json.loads(server.files["wandb-summary.json"])
    summary = json.loads((directory / "summary.json").read_text())
    for name in ("val_acc", "updates", "bytes_up"):
        assert figures[f"result/{name}"] == pytest.approx(summary[name])


def test_the_best_checkpoint_is_uploaded_as_an_artefact(ended):
    server, directory = ended
    (artefact,) = server.artefacts.values()

    assert artefact["artifactCollectionName"] == "model-chosen"
    assert {alias["alias"] for alias in artefact["aliases"]} == {"best", "latest"}
    assert server.committed == list(server.artefacts)
    assert server.files["artefact/model.ckpt"] == (directory / "checkpoints/best.ckpt").read_bytes()
