"""Where the values of many tensors lie, so that a compiled kernel takes all of them in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def addresses(tensors: Iterable[Tensor | None]) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], list[Tensor]]:
    """Of each tensor's values in logical order, float32 on the host: (n,), 0 for None.

    Those that lie otherwise are copied first. Addresses hold as long as the tensors, and the copies, which come with
    them.
    """
    found, copies = [], []
    for tensor in tensors:
        if tensor is None:
            found.append(0)
            continue
        if not (tensor.dtype == torch.float32 and tensor.is_cpu and tensor.is_contiguous()):
            tensor = tensor.to("cpu", torch.float32).contiguous()
            copies.append(tensor)
        found.append(tensor.data_ptr())
    return np.array(found, np.uint64), copies
