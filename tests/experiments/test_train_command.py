"""The command as a user runs it: another process, another directory, real workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, run

ROOT = Path(__file__).parents[2]
PROMISED = {
    "scheme", "code", "wait_for", "seed", "world_size", "parameters", "updates", "samples", "wall_s", "startup_s",
    "val_acc", "val_loss", "target", "time_to_target_s", "bytes_up", "bytes_down", "bytes_up_per_update_per_worker",
    "staleness_mean", "staleness_max", "inclusion_rate", "failures", "git_revision", "versions",
}  # fmt: skip
SHORT = ["trainer.max_steps=2", "code=lwpd_4_2_2"]


def train(directory: Path, *overrides: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command's end; started for real where modules in ``path`` hide others."""
    command = [sys.executable, "-m", "experiments.train", *overrides]
    if path is None:
        return run(command, cwd=directory, env={"PYTHONPATH": str(ROOT)})
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.fixture
def without_wandb(tmp_path: Path) -> Path:
    """Folder that hides wandb from a Python that has it on its path."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')\n")
    return folder


@pytest.mark.real_start
def test_two_updates_end_in_a_summary_without_wandb(tmp_path, without_wandb):
    done = train(
        tmp_path, *SHORT, "model.hidden=[16]", "logger=csv", "hydra.run.dir=here", "seed=3", path=without_wandb
    )

    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here/summary.json").read_text())
    assert summary.keys() >= PROMISED
    assert summary["code"] == {"family": "lwpd", "n": 4, "k": 2, "t": 2, "A": 1, "B": 2}
    assert (summary["scheme"], summary["seed"], summary["world_size"]) == ("lwpd", 3, 4)
    assert (summary["updates"], summary["wait_for"], len(summary["inclusion_rate"])) == (2, 3, 4)
    assert summary["samples"] == 2 * 128
    assert summary["parameters"] == 65 * 16 + 17 * 10
    assert summary["bytes_up"] > 0
    assert summary["time_to_target_s"] is None
    assert 0 <= summary["val_acc"] <= 1
    assert "what the code bought" in done.stdout
    assert (tmp_path / "here/csv/metrics.csv").stat().st_size > 0
    assert len(summary["data"]["sha256"]) == 64
    assert summary["data"]["sha256"] in (tmp_path / "here/csv/hparams.yaml").read_text()


@pytest.mark.slow
def test_the_default_logger_keeps_an_offline_wandb_run(tmp_path):
    pytest.importorskip("wandb")

    done = train(tmp_path, *SHORT, "data=stdlib_text", "model=gpt", "model.layers=1", "model.width=16",
                 "data.max_chars=20000", "data.context=32")  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    (run,) = (tmp_path / "outputs").glob("train/*/*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_bpc"] > 0
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"outputs"}


@pytest.mark.real_start
def test_a_missing_wandb_is_one_sentence(tmp_path, without_wandb):
    done = train(tmp_path, *SHORT, path=without_wandb)

    assert done.returncode != 0
    assert "wandb is not installed: pip install 'lwpd-lightning[experiments]'" in done.stderr
    assert "Traceback" not in done.stderr
