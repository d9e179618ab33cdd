"""The examples as a reader runs them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.mark.real_start
def test_a_transformers_model_learns_on_four_workers(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")

    done = subprocess.run(
        [sys.executable, "-m", "experiments.examples.transformers_model", "--epochs", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)$", done.stdout, re.MULTILINE)]
    assert len(losses) >= 4
    assert losses[0] > losses[1] > losses[-1]
    assert losses[-1] < 3.0  # nats a byte; a uniform guess over the vocabulary is 5.95
    assert "Traceback" not in done.stderr


def test_a_missing_transformers_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "experiments.examples.transformers_model", raising=False)

    with pytest.raises(SystemExit) as ended:
        importlib.import_module("experiments.examples.transformers_model")

    assert ended.value.code == "transformers is not installed: pip install 'lwpd-lightning[examples]'"
