"""README's first example: a script with AdamW, warm-up, decay and clipping, of which only the strategy is another."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[2]
# README promises 1.1, which is hard to miss here: at three seeds the losses were 1.6 to 2 % above DDP's, and 3.2 to
# 4.2 % with ternary gradients that are neither whitened nor rotated.
WITHIN = 1.025


def validated(strategy: str, directory: Path) -> list[float]:
    """The loss on the validation set after each epoch of four ranks."""
    words = ["--strategy", strategy, "--devices", "4", "--epochs", "3"]
    done = run(
        [sys.executable, "-m", "experiments.examples.drop_in", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [float(loss) for loss in re.findall(r"^epoch \d+ .* val_loss (\d+\.\d+)$", done.stdout, re.MULTILINE)]


@pytest.fixture(scope="module")
def of_ddp(tmp_path_factory):
    losses = validated("ddp_fork", tmp_path_factory.mktemp("ddp"))  # Lightning's DDP, forked as ours is
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0] < 4.0  # nats; 4.85 is a guess
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["whitened", "lwpd"])
def test_the_loss_is_ddps(strategy, of_ddp, tmp_path):
    ours = validated(strategy, tmp_path)

    assert len(ours) == len(of_ddp)
    assert max(mine / theirs for mine, theirs in zip(ours[1:], of_ddp[1:], strict=True)) < WITHIN
