"""Whole batches, dealt out in turn: what each rank reads of data that all of them have in one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from lwpd_lightning.data.indexed import fetching_like


class _EachNth:
    def __init__(self, batches: Iterable[Any], first: int, ranks: int, total: int) -> None:
        self._batches, self._of = batches, range(first, total, ranks)

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self._batches):
            if index >= self._of.stop:
                return
            if index in self._of:
                yield batch

    def __len__(self) -> int:
        return len(self._of)


def share_of(loader: DataLoader[Any], rank: int, ranks: int, total: int) -> DataLoader[Any]:
    """The loader of batches ``rank``, ``rank + ranks`` and so on of the first ``total``.

    Args:
        loader: whose batches all ranks have in the same order, made by a sampler.
        rank: 0 to ranks - 1.
        ranks: by how many it is read.
        total: batches that are read at all.

    >>> [batch.tolist() for batch in share_of(DataLoader(range(10), batch_size=2), rank=1, ranks=2, total=4)]
    [[2, 3], [6, 7]]
    """
    assert loader.batch_sampler is not None
    return fetching_like(loader, loader.dataset, _EachNth(loader.batch_sampler, rank, ranks, total))
