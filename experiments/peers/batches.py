"""Each rank's share of the validation batches, without the repetition that a DistributedSampler pads with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from lwpd_lightning import data
from lwpd_lightning.data import fetching_like


class _Samples:
    """Of each of the first ``total`` batches every ``ranks``-th sample; batches that have none are left out."""

    def __init__(self, batches: Iterable[Sequence[Any]], rank: int, ranks: int, total: int) -> None:
        self._batches, self._rank, self._ranks, self._total = batches, rank, ranks, total

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for batch in islice(self._batches, self._total):
            if share := list(batch)[self._rank :: self._ranks]:
                yield share

    def __len__(self) -> int:
        return sum(1 for _ in self)


def share_of(loader: DataLoader[Any], rank: int, ranks: int, limit: int | float | None = None) -> DataLoader[Any]:
    """The loader of one rank's share of the first ``limit`` batches (a float, or None: of all that there are).

    Whole batches, where there is at least one for each rank; else samples of each. All ranks together have each once.

    >>> [batch.tolist() for batch in share_of(DataLoader(range(10), batch_size=4), rank=1, ranks=2)]
    [[4, 5, 6, 7]]
    >>> [batch.tolist() for batch in share_of(DataLoader(range(10), batch_size=8), rank=1, ranks=3)]
    [[1, 4, 7], [9]]
    """
    assert loader.batch_sampler is not None
    total = len(loader) if limit is None or isinstance(limit, float) else min(limit, len(loader))
    if total >= ranks:
        return data.share_of(loader, rank, ranks, total)
    return fetching_like(loader, loader.dataset, _Samples(loader.batch_sampler, rank, ranks, total))
