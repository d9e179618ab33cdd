"""How large a codeword may be: a fixed bound on norms, or a multiple of the median of those that counted lately."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

# Norms that the median is of: some updates' worth, so that the bound follows a gradient that grows or shrinks.
_MEMORY = 256
# With fewer than these, one codeword that is far too large could be the median.
_ENOUGH = 8


@dataclass(frozen=True)
class NormLimit:
    """What a user allows.

    Attributes:
        value: the bound, or by what to multiply the median.
        of_median: which of the two it is.
    """

    value: float
    of_median: bool = False

    @classmethod
    def read(cls, given: object) -> NormLimit | None:
        """A positive number, or a multiple above 1 as "10x"; None for anything else.

        >>> NormLimit.read("10x")
        NormLimit(value=10.0, of_median=True)
        """
        of_median = isinstance(given, str) and given.endswith("x")
        try:
            value = float(given[:-1] if of_median else given)  # type: ignore[index, arg-type]
        except (TypeError, ValueError):
            return None
        works = math.isfinite(value) and value > (1.0 if of_median else 0.0) and not isinstance(given, bool)
        return cls(value, of_median) if works else None


class NormGuard:
    """Tells which codewords are too large to count.

    Norms are Euclidean, each divided by that of its worker's row of the generator, so that they are comparable whatever
    coefficients a row has.

    Args:
        limit: what the user allows; None: everything.
    """

    def __init__(self, limit: NormLimit | None) -> None:
        self._limit = limit
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def bound(self) -> float:
        """The largest norm that counts now; infinite while too few have counted, or zeros alone."""
        if self._limit is None:
            return math.inf
        if not self._limit.of_median:
            return self._limit.value
        if len(self._sorted) < _ENOUGH or not (median := self._sorted[len(self._sorted) // 2]):
            return math.inf
        return self._limit.value * median

    def admits(self, norm: float | None) -> bool:
        """Whether a codeword of this norm may count; one whose norm nobody took may."""
        return self._limit is None or norm is None or (math.isfinite(norm) and norm <= self.bound)

    def counted(self, norm: float | None) -> None:
        """A codeword of this norm counts."""
        if norm is None or self._limit is None or not self._limit.of_median:
            return
        if len(self._recent) == _MEMORY:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(norm)
        insort(self._sorted, norm)
