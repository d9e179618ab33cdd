import sys
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def sweep(tmp_path_factory) -> Path:
    """Four real runs of four workers: two schemes, two seeds, six updates, three validations, CSV and offline W&B."""
    directory = tmp_path_factory.mktemp("runs") / "sweep"
    command = [
        sys.executable, "-m", "experiments.train", "-m", "scheme=lwpd,k_async", "seed=0,1", "code=lwpd_4_2_2",
        "model.hidden=[16]", "trainer.max_steps=6", "trainer.val_check_interval=2", "target.value=0.05",
        f"hydra.sweep.dir={directory}",
    ]  # fmt: skip
    done = run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return directory
