"""Where a training loop stands, as far as a loader must know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


class Place(Protocol):
    """Where the loop stands that a loader is read in."""

    @property
    def epoch(self) -> int:
        """The epoch that an iteration yields."""

    @property
    def trained(self) -> tuple[int, int] | None:
        """Epoch and index of the batch that is trained on; None: the one that was yielded last."""

    @property
    def limit(self) -> float:
        """Number of batches after which an epoch ends in any case."""

    def begin(self) -> None:
        """Somebody begins to iterate."""

    def start_of(self, iteration: Iterator[Any]) -> int | None:
        """Index of the batch that ``iteration`` begins with where it is the loop's own; None for any other."""

    def ends(self, length: int) -> None:
        """The loop's own iteration is at the last batch of an epoch of ``length``."""

    def structured(self, part: Any) -> Any:
        """A data part in the collection that the user's loader came in."""


@dataclass
class FixedPlace:
    """A place that is set by hand, where every iteration begins."""

    epoch: int = 0
    index: int = 0
    trained: tuple[int, int] | None = None
    limit: float = float("inf")

    def begin(self) -> None:
        """Nothing is to be prepared."""

    def start_of(self, iteration: Iterator[Any]) -> int | None:
        """All iterations are alike."""
        return self.index

    def ends(self, length: int) -> None:
        """Nobody needs to know."""

    def structured(self, part: Any) -> Any:
        """A data part as it is."""
        return part
