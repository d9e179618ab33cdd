"""The user's training DataLoader, of whose batches every rank can name the data parts that it needs.

The user's own DataLoader says what a batch is; `CodedLoader` only fixes the order of its samples and fetches, for one
worker, the data parts that its row of the code needs. A worker that skipped versions asks for a later batch and gets
exactly the samples that any other worker has in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lwpd_lightning.data.batch import Batches, CodedBatch
from lwpd_lightning.data.indexed import IndexedBatches
from lwpd_lightning.data.place import FixedPlace, Place
from lwpd_lightning.data.streamed import StreamedBatches


class CodedLoader:
    """The training DataLoader of a coded run.

    ``batch_size`` is the whole update's: a batch is cut, in the loader's order, into ``data_parts`` equal runs of
    samples. With ``drop_last=False`` a short last batch is trimmed to a multiple of ``data_parts`` and left out when it
    has fewer samples than that; ``drop_last=True`` leaves it out as always. The order of an epoch is what the loader's
    own (batch) sampler yields when it is told the epoch and every random generator is seeded with (seed, epoch), or
    what an iterable dataset yields under such generators.

    Iterating yields, as on a single device, one ordinary batch for each update: the first of the worker's own data
    parts. All of them are in `current`. Whatever else the user's loader has (``dataset``, ``batch_size``, ``sampler``,
    an attribute of a subclass) is found here too.

    Args:
        loader: the user's loader; collate_fn, num_workers, pin_memory and the rest are kept.
        data_parts: A.
        parts: the data parts to fetch.
        seed: keys all batches of the run.
        place: where the training loop stands; default the start of epoch 0.

    Raises:
        ValueError: for loaders that cannot be cut into data parts reproducibly.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        data_parts: int,
        parts: Sequence[int],
        seed: int,
        place: Place | None = None,
    ) -> None:
        _refuse_unsplittable(loader, data_parts)
        self.loader = loader
        self.data_parts, self.parts, self.seed = data_parts, tuple(parts), seed
        self.place: Place = place if place is not None else FixedPlace()
        self._batches: Batches
        if isinstance(loader.dataset, IterableDataset):
            self._batches = StreamedBatches(loader, data_parts, self.parts, seed)
        else:
            self._batches = IndexedBatches(loader, data_parts, self.parts, seed)
        self._yielded: CodedBatch | None = None
        self._begun = self.place.epoch

    def for_worker(self, parts: Sequence[int], seed: int) -> CodedLoader:
        """The same loader with another worker's data parts, under the seed that rank 0 announced."""
        other = CodedLoader(self.loader, data_parts=self.data_parts, parts=parts, seed=seed, place=self.place)
        other._batches.know(self._batches)
        return other

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "loader" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"place": FixedPlace(self._begun), "_yielded": None}

    def length(self, epoch: int) -> int | None:
        """Number of updates in an epoch; None where that is only known at its end."""
        return self._batches.length(epoch)

    def has(self, epoch: int, index: int) -> bool:
        """Whether there is a batch ``index`` in the epoch; of an iterable dataset, reads the stream to there."""
        return self._batches.has(epoch, index)

    def batch(self, epoch: int, index: int) -> CodedBatch:
        """Batch ``index`` of ``epoch``, its data parts in the collection that the loader came in.

        Raises:
            IndexError: where there is none.
        """
        return self._structured(self._batches.fetch(epoch, index))

    @property
    def current(self) -> CodedBatch | None:
        """The batch that is trained on, whatever else was fetched meanwhile; None before the first."""
        trained, batch = self.place.trained, self._yielded
        if trained is None or batch is None or trained == (batch.epoch, batch.index) or not self.has(*trained):
            return batch
        self._yielded = self.batch(*trained)
        return self._yielded

    def __len__(self) -> int:
        """Number of updates in the epoch that was begun last; raises TypeError where it is not known."""
        length = self.length(self._begun)
        if length is None:
            raise TypeError(f"the number of batches of {type(self.loader).__name__} is not known before their end.")
        return length

    def __iter__(self) -> Iterator[Any]:
        self.place.begin()
        self._begun = self.place.epoch
        return _Iteration(self)

    def fingerprint(self) -> bytes:
        """Bytes that two loaders share when seed, data parts and (the first) batches agree."""
        return repr((self.seed, self.data_parts, *self._batches.fingerprint())).encode()

    def close(self) -> None:
        """End the processes that fetch ahead."""
        self._batches.close()

    def _structured(self, batch: CodedBatch) -> CodedBatch:
        return replace(batch, parts={part: self.place.structured(data) for part, data in batch.parts.items()})

    def _order(self, epoch: int) -> list[Sequence[Any]]:
        assert isinstance(self._batches, IndexedBatches)
        return self._batches.order(epoch).drawn


class _Iteration:
    """Yields the first own data part of each batch; where it begins is known when the first is asked for."""

    def __init__(self, loader: CodedLoader) -> None:
        self._loader, self._next = loader, (-1, 0)
        self._begun = self._moves = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        loader, place = self._loader, self._loader.place
        if not self._begun:
            start = place.start_of(self)
            self._begun, self._moves = True, start is not None
            self._next = place.epoch, start or 0
        epoch, index = self._next
        if not loader.has(epoch, index):
            raise StopIteration
        batch = loader._batches.fetch(epoch, index)
        loader._yielded = loader._structured(batch)
        self._next = epoch, index + 1
        if self._moves and index + 1 < place.limit and not loader.has(epoch, index + 1):
            place.ends(index + 1)
        return batch.parts[loader.parts[0]]


def refuse_readers(loader: object) -> None:
    """Refuse what is not a torch DataLoader, or reads its dataset in a way of its own.

    Raises:
        ValueError: for such a loader.
    """
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the training loader is a {type(loader).__name__}: coded exchange cuts a torch DataLoader's batches into "
            "data parts, so return one DataLoader from train_dataloader()."
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise ValueError(
            f"the training loader {type(loader).__name__} overrides __iter__: coded exchange fetches data parts by "
            "itself, so use a torch DataLoader with a collate_fn instead."
        )
    if callable(getattr(loader, "load_state_dict", None)):
        raise ValueError(
            f"the training loader {type(loader).__name__} has a load_state_dict: coded exchange itself goes on with the"
            " batch that was next in a resumed epoch, so use a torch DataLoader without."
        )


def _refuse_unsplittable(loader: DataLoader[Any], data_parts: int) -> None:
    refuse_readers(loader)
    if loader.batch_sampler is None:
        raise ValueError("the training loader has batch_size=None: set the batch_size of a whole update.")
    if isinstance(getattr(loader.batch_sampler, "sampler", None), DistributedSampler):
        raise ValueError(
            "the training loader has a DistributedSampler: coded exchange divides batches itself, so leave it out."
        )
    batch_size = getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(batch_size, int) and batch_size % data_parts:
        below, above = batch_size - batch_size % data_parts, batch_size + -batch_size % data_parts
        raise ValueError(
            f"batch_size={batch_size} is the whole update's batch, which {data_parts} data parts do not divide: "
            f"use {below or above} or {above if below else 2 * above}."
        )
