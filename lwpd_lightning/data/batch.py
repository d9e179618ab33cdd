"""A batch as one worker needs it, and who gives batches by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

_Samples = TypeVar("_Samples", bound=Sequence[Any])


@dataclass(frozen=True)
class CodedBatch:
    """The data parts of one update's batch that one worker needs.

    Attributes:
        epoch: epoch of the batch.
        index: index of the batch in its epoch.
        parts: data part -> what the user's ``collate_fn`` made of its samples.
        part_samples: number of samples in each data part.
        fetch_s: seconds that this process waited for the batch.
    """

    epoch: int
    index: int
    parts: dict[int, Any]
    part_samples: int
    fetch_s: float


class Batches(Protocol):
    """All batches of a run, cut into data parts, of which one process fetches some."""

    def length(self, epoch: int) -> int | None:
        """Number of batches in the epoch; None where only its end will tell."""

    def has(self, epoch: int, index: int) -> bool:
        """Whether the epoch has a batch ``index``."""

    def fetch(self, epoch: int, index: int) -> CodedBatch:
        """The batch; raises IndexError where there is none."""

    def know(self, other: Batches) -> None:
        """Take over what another process of the run, whose loader is the same, has found out."""

    def fingerprint(self) -> tuple[object, ...]:
        """What two processes share when their batches agree."""

    def close(self) -> None:
        """End the processes that fetch ahead."""


def part_of(samples: _Samples, part: int, data_parts: int) -> _Samples:
    """Data part ``part`` of a batch: one of ``data_parts`` equal runs of its samples.

    >>> part_of([3, 1, 4, 1, 5, 9], part=1, data_parts=3)
    [4, 1]
    """
    size = len(samples) // data_parts
    return samples[part * size : (part + 1) * size]  # type: ignore[return-value]


def no_such_batch(epoch: int, index: int) -> IndexError:
    """The error of a batch that does not exist."""
    return IndexError(f"epoch {epoch} has no batch {index}.")
