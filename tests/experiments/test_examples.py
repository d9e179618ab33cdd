"""The examples as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_transformers_model_learns_on_four_workers(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")

    done = subprocess.run(
        [sys.executable, "-m", "experiments.examples.transformers_model", "--epochs", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True, timeout=110, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)$", done.stdout, re.MULTILINE)]
    assert len(losses) >= 4
    assert losses[0] > losses[1] > losses[-1]
    assert losses[-1] < 3.0  # nats a byte; a uniform guess over the vocabulary is 5.95
    assert "Traceback" not in done.stderr


def test_a_missing_transformers_is_one_sentence():
    # Hidden from the example alone: torchmetrics looks for the package by other means.
    hidden = "import lightning, sys; sys.modules['transformers'] = None; import experiments.examples.transformers_model"

    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert done.stderr.strip() == "transformers is not installed: pip install 'lwpd-lightning[examples]'"
