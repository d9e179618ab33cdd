"""How kernels are compiled: by numba, for some seconds by the first process on a machine, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

REORDERED = {"reassoc", "contract"}  # sums in as many lanes as the CPU has; NaN, infinities and zeros as they are


def compiled(*signature: str, **options: Any) -> Callable[[Any], Any]:
    """A decorator: the function, compiled, and kept beside its file or in the user's cache."""
    njit: Any = numba.njit  # has types in some versions only

    def compile_(function: Any) -> Any:
        try:
            return njit(*signature, cache=True, **options)(function)
        except RuntimeError:  # there is no directory to keep it in
            return njit(*signature, **options)(function)

    return compile_
