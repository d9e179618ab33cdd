"""Each rank's share of the validation batches, without the repetition that a DistributedSampler pads with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from lwpd_lightning.data import fetching_like


class _Share:
    """Of each batch every ``ranks``-th sample, from ``rank`` on; batches that have none are left out."""

    def __init__(self, batches: Iterable[Sequence[Any]], rank: int, ranks: int) -> None:
        self._batches, self._rank, self._ranks = batches, rank, ranks

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for batch in self._batches:
            if share := list(batch)[self._rank :: self._ranks]:
                yield share

    def __len__(self) -> int:
        return sum(1 for _ in self)


def share_of(loader: DataLoader[Any], rank: int, ranks: int) -> DataLoader[Any]:
    """The loader of one rank's samples; all ranks together have each sample once, in as many batches as before.

    >>> from torch.utils.data import DataLoader
    >>> [batch.tolist() for batch in share_of(DataLoader(range(10), batch_size=4), rank=1, ranks=2)]
    [[1, 3], [5, 7], [9]]
    """
    assert loader.batch_sampler is not None
    return fetching_like(loader, loader.dataset, _Share(loader.batch_sampler, rank, ranks))
