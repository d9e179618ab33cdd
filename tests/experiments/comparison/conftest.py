import fcntl
import os
import sys
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def sweep(tmp_path_factory) -> Path:
    """Four real runs of four workers: two schemes, two seeds, six updates, three validations, CSV and offline W&B.

    Made once for all of pytest-xdist's processes, and not to be written to.
    """
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    directory = common / "comparison/sweep"
    command = [
        sys.executable, "-m", "experiments.train", "-m", "scheme=lwpd,k_async", "seed=0,1", "code=lwpd_4_2_2",
        "model.hidden=[16]", "trainer.max_steps=6", "trainer.val_check_interval=2", "target.value=0.05",
        f"hydra.sweep.dir={directory}",
    ]  # fmt: skip
    with (common / "comparison.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "3/summary.json").exists():
            done = run(command, cwd=ROOT)
            assert done.returncode == 0, done.stderr
    return directory
