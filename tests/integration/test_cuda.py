"""The same code with the model on a GPU, which several ranks share."""

import sys
from pathlib import Path

import pytest
import torch

from lwpd_lightning.testing import Job
from tests.commands import PATIENCE_S

JOB = [sys.executable, str(Path(__file__).parent / "job.py"), "--updates", "10", "--wait-for", "4"]
ROOT = Path(__file__).parents[2]


def final_norm(*arguments):
    with Job([*JOB, *arguments], env={"PYTHONPATH": str(ROOT)}) as job:
        result = job.wait(PATIENCE_S)
        assert result.exit_code == 0, result.output
        return float(result.output.rsplit("DONE ", 1)[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_four_ranks_on_one_gpu_equal_four_on_the_cpu():
    assert final_norm("--accelerator", "gpu") == pytest.approx(final_norm(), rel=1e-4)
