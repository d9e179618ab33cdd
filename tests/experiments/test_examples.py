"""The examples as a reader runs them, and their losses against DDP's: two ranks each, K = n, the same seeds."""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OFFLINE = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
SEEDS = (0, 1, 2)
# Runs in which nothing but rounding may differ from DDP's.
EXACT = {
    "hf_finetuning": [{"seed": 0, "epochs": 1, "dropout": 0.0, "like_ddp": True}],
    "timm_batchnorm": [{"seed": 0, "epochs": 1, "like_ddp": True}],
    "streaming_lm": [{"seed": 0, "epochs": 2}],
    "lstm_state": [{"seed": 0, "epochs": 2}],
    "backbone_finetuning": [{"seed": 0, "epochs": 2, "like_ddp": True}],
}
# Runs that differ as seeds do: in dropout's masks, in running statistics, in the order of samples, in latents' noise.
SPREAD = {
    "hf_finetuning": [{"seed": seed, "epochs": 2, "like_ddp": True} for seed in SEEDS],
    "timm_batchnorm": [{"seed": seed, "epochs": 2, "like_ddp": True} for seed in SEEDS],
    "vae_annealing": [{"seed": seed, "epochs": 3} for seed in SEEDS],
    "backbone_finetuning": [{"seed": seed, "epochs": 2} for seed in SEEDS],
}
EXAMPLES = ["timm_batchnorm", "vae_annealing", "streaming_lm", "lstm_state", "backbone_finetuning"]


@pytest.fixture(autouse=True)
def _installed(request):
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name == "hf_finetuning":
        pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The losses of all runs of an example, those of `EXACT` first."""
    folder = tmp_path_factory.mktemp("curves")

    @functools.cache
    def train(name, strategy, devices=2):
        runs = EXACT.get(name, []) + SPREAD.get(name, []) if devices > 1 else EXACT[name]
        file = folder / f"{name}-{strategy}-{devices}.json"
        words = ["--strategy", strategy, "--devices", str(devices), "--runs", json.dumps(runs), "--file", str(file)]
        done = run([sys.executable, "-m", "tests.experiments.curves", name, *words], cwd=folder, env=OFFLINE)
        assert done.returncode == 0, done.stderr
        return json.loads(file.read_text())

    return train


@pytest.mark.parametrize("name", EXACT)
def test_what_ddp_adds_up_too_differs_by_rounding(name, curves):
    ours, theirs = curves(name, "lwpd")[0], curves(name, "ddp")[0]

    assert len(ours["training"]) >= 20
    assert sum(ours["training"][-5:]) < 0.95 * sum(ours["training"][:5])
    if name == "backbone_finetuning":  # DDP leaves out what was frozen when it began: its ranks' backbones part
        updates = len(ours["training"]) // 2
        assert ours["training"][:updates] == pytest.approx(theirs["training"][:updates], abs=1e-4)
        assert ours["validation"][:1] == pytest.approx(theirs["validation"][:1], abs=1e-4)
        theirs = curves(name, "ddp", devices=1)[0]
    assert ours["training"] == pytest.approx(theirs["training"], abs=1e-4)
    if name != "timm_batchnorm":  # DDP validates with the running statistics of one rank
        assert ours["validation"] == pytest.approx(theirs["validation"], abs=1e-4)


@pytest.mark.parametrize("name", SPREAD)
def test_the_curve_is_ddps_within_the_spread_of_seeds(name, curves):
    ours, theirs = (
        [run["validation"] for run in curves(name, strategy)[-len(SEEDS) :]] for strategy in ("lwpd", "ddp")
    )

    assert len(ours[0]) == len(theirs[0]) == SPREAD[name][0]["epochs"]
    for epoch, (mine, others) in enumerate(zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)):
        spread = max(max(losses) - min(losses) for losses in (mine, others))
        assert sum(mine) / len(SEEDS) == pytest.approx(sum(others) / len(SEEDS), abs=spread), f"epoch {epoch}"
    assert max(run[-1] for run in ours) < min(run[0] for run in ours)  # or the curves would be too flat to tell


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_command(name, tmp_path):
    done = run([sys.executable, "-m", f"experiments.examples.{name}", "--epochs", "1"], cwd=tmp_path, env=OFFLINE)

    assert done.returncode == 0, done.stderr
    assert len(_epochs(done.stdout)) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.real_start
def test_a_transformers_model_is_fine_tuned(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")

    done = subprocess.run(
        [sys.executable, "-m", "experiments.examples.hf_finetuning", "--epochs", "2"], cwd=tmp_path,
        env={**os.environ, **OFFLINE}, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    losses = _epochs(done.stdout)
    assert len(losses) == 2
    assert losses[-1] < losses[0] < 0.69  # nats a line, as of a guess
    assert "Traceback" not in done.stderr


def test_a_network_of_timms_is_trained(tmp_path):
    reason = "timm is not installed, or not the torchvision that all of it imports (extra `vision`)"
    pytest.importorskip("timm", reason=reason, exc_type=ImportError)

    words = ["--network", "test_resnet", "--epochs", "1"]
    done = run([sys.executable, "-m", "experiments.examples.timm_batchnorm", *words], cwd=tmp_path, env=OFFLINE)

    assert done.returncode == 0, done.stderr
    assert len(_epochs(done.stdout)) == 1


def test_a_missing_timm_is_one_sentence(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "timm", None)
    example = importlib.import_module("experiments.examples.timm_batchnorm")

    with pytest.raises(SystemExit) as ended:
        example.train(network_name="test_resnet")

    assert re.fullmatch(
        r"--network test_resnet needs timm and the torchvision that it imports \(.*\): "
        r"pip install 'lwpd-lightning\[vision\]', or use --network own\.", str(ended.value.code),
    )  # fmt: skip
    assert capfd.readouterr() == ("", "")  # nothing of a Trainer that is not needed


def test_a_missing_transformers_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "experiments.examples.hf_finetuning", raising=False)

    with pytest.raises(SystemExit) as ended:
        importlib.import_module("experiments.examples.hf_finetuning")

    assert ended.value.code == "transformers is not installed: pip install 'lwpd-lightning[examples]'"


def _epochs(output):
    return [float(loss) for loss in re.findall(r"^epoch \d+ .* val_loss (\d+\.\d+)$", output, re.MULTILINE)]
