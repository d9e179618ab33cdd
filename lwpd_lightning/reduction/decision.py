"""Who counts in an update and who adds what up: the coordinator decides, and every rank reads the same from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lwpd_lightning.coding.wire import CHUNK
from lwpd_lightning.links.header import Header, ProtocolError

# A slice is no shorter than this: below, messages cost ranks more than they take off links. Raced with the sketch of
# 1.1M parameters, 32 ranks at 100 Mbit/s: 377 ms an update with 8, 303 ms with 32.
_LEAST_CHUNKS = 32


class Slice(NamedTuple):
    """Positions ``start`` to ``stop`` of all codewords, which worker ``reducer`` adds up."""

    reducer: int
    start: int
    stop: int


@lru_cache(maxsize=1024)
def share_out(size: int, workers: tuple[int, ...]) -> tuple[Slice, ...]:
    """Cut ``size`` positions among workers, in equal numbers of int8 chunks; the last ones get none where it is short.

    >>> share_out(80_000, (3, 1, 2))
    (Slice(reducer=3, start=0, stop=39936), Slice(reducer=1, start=39936, stop=80000))
    """
    chunks = -(-size // CHUNK)
    reducers = workers[: max(1, chunks // _LEAST_CHUNKS)]
    ends = [min(size, CHUNK * (chunks * (i + 1) // len(reducers))) for i in range(len(reducers))]
    return tuple(Slice(*slice_) for slice_ in zip(reducers, [0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True)
class Decision:
    """How an update's gradient is made: row r of it is ``sum_i weights[r, i] * codeword of workers[i]``.

    Attributes:
        number: counts the decisions of a fit from 1. An update has more than one where a worker died before its end.
        version: the version that the update steps from.
        workers: whose codewords count.
        reducers: how many of them, from the first on, add up, each the positions that `slices` gives it.
        weights: (rows, len(workers)) float64: `Receiver.weights`.
        touched: for each trainable parameter, whether it got a gradient.
    """

    number: int
    version: int
    workers: list[int]
    reducers: int
    weights: Tensor
    touched: list[bool]

    @property
    def rows(self) -> int:
        """Rows of the decoded gradient."""
        return int(self.weights.shape[0])

    def slices(self, size: int) -> tuple[Slice, ...]:
        """Who adds up which of ``size`` positions."""
        return share_out(size, tuple(self.workers[: self.reducers]))

    def share_of(self, worker: int | None, size: int) -> Slice | None:
        """What the worker adds up of ``size`` positions, if anything."""
        return next((piece for piece in self.slices(size) if piece.reducer == worker), None)

    def pack(self) -> tuple[Tensor, Tensor]:
        """The two payloads of a message, uint8."""
        workers = torch.tensor([self.reducers, *self.workers]).view(torch.uint8)
        weights = self.weights.contiguous().view(torch.uint8)
        return torch.cat([workers, weights.flatten()]), torch.tensor(self.touched, dtype=torch.uint8)

    @classmethod
    def unpack(cls, header: Header, payload: Tensor, rest: Tensor, rows: int) -> Decision:
        """Read a decision of ``rows`` rows; raises ProtocolError where nobody can carry it out."""
        count = header.elements
        if count < 1 or payload.numel() != 8 * (1 + count * (1 + rows)):
            raise ProtocolError(f"a decision of {payload.numel()} bytes on {count} codewords with {rows} rows")
        payload = payload.clone()
        numbers, weights = payload[: 8 * (1 + count)], payload[8 * (1 + count) :]
        reducers, *workers = numbers.view(torch.int64).tolist()
        if not 1 <= reducers <= count:
            raise ProtocolError(f"a decision on {count} codewords that {reducers} add up")
        if len(set(workers)) != count or min(workers) < 0:
            raise ProtocolError(f"a decision on codewords of workers {workers}")
        return cls(
            number=header.decision,
            version=header.version,
            workers=workers,
            reducers=reducers,
            weights=weights.view(torch.float64).view(rows, count),
            touched=rest.bool().tolist(),
        )
