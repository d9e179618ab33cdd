"""Whether two collections of samples are the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def alike(one: Any, other: Any) -> bool:
    """Whether tensors, arrays, numbers and strings in both, and the containers around them, are equal; NaN equals NaN.

    Objects of other kinds pass as alike: what they hold is not known.

    >>> alike([1.0, {"a": float("nan")}], [1.0, {"a": float("nan")}]), alike([1, 2], [1, 3])
    (True, False)
    """
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape or one.layout != other.layout:
            return False
        one, other = (tensor.detach().to_dense() if tensor.is_sparse else tensor.detach() for tensor in (one, other))
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        if not isinstance(other, np.ndarray) or one.shape != other.shape:
            return False
        if one.dtype.hasobject or one.dtype.names:
            return all(map(alike, one.ravel().tolist(), other.ravel().tolist()))
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, (int, float, complex, str, bytes, np.generic)) or one is None:
        return bool(one == other or (one != one and other != other))
    return type(one) is type(other)
