"""Where the compiled kernels come from: numba, which is an extra. Whoever calls them has the same in numpy or torch."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def compiled() -> ModuleType | None:
    """`kernels_numba`, for float32 on the host; None where numba is not installed, not for this numpy, or told not to
    compile (NUMBA_DISABLE_JIT): what is written in lanes and over pointers is nothing that Python can run.

    The first call loads a hundred megabytes, which forked ranks share with the process that made it.
    """
    try:
        if importlib.import_module("numba").config.DISABLE_JIT:
            return None
        return importlib.import_module("lwpd_lightning.coding.kernels_numba")
    except ImportError:
        return None


def compiled_for(*tensors: Tensor) -> ModuleType | None:
    """`compiled`, where kernels take these: float32 on the host and contiguous."""
    fit = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    return compiled() if fit else None
