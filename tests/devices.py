"""The devices that a test runs on: what holds on the host holds on a GPU, where there is one."""

import pytest
import torch

# Where a GPU is visible nothing can be forked, so that the other tests run without one (see conftest).
NO_GPU = "no CUDA device here; where there is one, pytest -m cuda runs this, and pytest alone hides it"


def on_cuda(test):
    """Mark a test that needs a GPU."""
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)(test))


CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)])
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
