"""Batches of a map-style dataset: the order of an epoch is drawn ahead, and samples are fetched by their indices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lwpd_lightning.data.batch import Batches, CodedBatch, no_such_batch, part_of
from lwpd_lightning.data.likeness import alike
from lwpd_lightning.data.randomness import Randomness, derive_seed, isolated_rng, seed_everything_locally

_COMPARED = 2  # batches of an order without a length, which may have no end


class _PartRequest(NamedTuple):
    """What the batch sampler hands to the dataset: the samples of one data part and their seed."""

    seed: int
    indices: Sequence[Any]


class _SeededDataset(Dataset[Any]):
    """Fetches whole data parts, seeding first, so that random augmentation is the same on every worker."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, request: _PartRequest) -> list[Any]:
        seed_everything_locally(request.seed)
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if fetch_many is not None:
            return list(fetch_many(request.indices))
        return [self.dataset[index] for index in request.indices]


class _FetchingProcess:
    """``worker_init_fn`` under which a user's finds the user's dataset in ``get_worker_info().dataset``."""

    def __init__(self, users: Callable[[int], None] | None) -> None:
        self._users = users

    def __call__(self, number: int) -> None:
        info = get_worker_info()
        assert info is not None and isinstance(info.dataset, _SeededDataset)
        object.__setattr__(info, "dataset", info.dataset.dataset)  # torch forbids plain assignment
        if self._users is not None:
            self._users(number)


class _Order:
    """The batches of one epoch, as lists of indices, drawn as far as they are asked for.

    An order that has a length is drawn to its end at once.
    """

    def __init__(self, loader: DataLoader[Any], data_parts: int, seed: int, epoch: int) -> None:
        samplers, self._data_parts = _samplers(loader), data_parts
        self.drawn: list[Sequence[Any]] = []
        own = [g for owner in samplers if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
        self._randomness = Randomness(derive_seed(seed, epoch), own)
        for sampler in samplers:
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)
        assert loader.batch_sampler is not None
        self._length, self._seen = _length(loader.batch_sampler), 0
        with self._randomness():
            self._drawing = iter(loader.batch_sampler)
            self._ended = False
            while self.sized and not self._ended:
                self._draw()

    @property
    def sized(self) -> bool:
        """Whether the number of batches is known before all are drawn."""
        return self._length is not None

    def has(self, index: int) -> bool:
        """Whether there is a batch ``index``; draws that far."""
        if len(self.drawn) <= index and not self._ended:
            with self._randomness():
                while len(self.drawn) <= index and not self._ended:
                    self._draw()
        return index < len(self.drawn)

    def like(self, other: _Order) -> bool:
        """Whether both are the same; of orders without a length, whether they begin alike."""
        if not self.sized:
            return all(self._like_at(other, index) for index in range(_COMPARED))
        try:
            return self.drawn == other.drawn
        except (RuntimeError, ValueError):  # indices that are tensors or arrays of several values
            return alike(self.drawn, other.drawn)

    def _like_at(self, other: _Order, index: int) -> bool:
        if self.has(index) != other.has(index):
            return False
        return not self.has(index) or alike(self.drawn[index], other.drawn[index])

    def _draw(self) -> None:
        batch = self._following()
        if batch is None:
            return
        rest = len(batch) % self._data_parts
        if rest:
            if self._following() is not None:
                raise ValueError(
                    f"batch {len(self.drawn)} has {len(batch)} samples, which {self._data_parts} data parts do not "
                    f"divide: use a batch sampler whose batches are multiples of {self._data_parts}."
                )
            batch = batch[: len(batch) - rest]
        if batch:
            self.drawn.append(batch)

    def _following(self) -> Sequence[Any] | None:
        batch = next(self._drawing, None) if self._length is None or self._seen < self._length else None
        self._ended = batch is None
        self._seen += 1
        return None if batch is None else list(batch)


class _PartRequests:
    """The batch sampler of the fetching DataLoader: some data parts of all batches from ``start`` on."""

    def __init__(self, seed: int, data_parts: int, parts: Sequence[int]) -> None:
        self._seed, self._data_parts, self._parts = seed, data_parts, parts
        self._epoch, self._start = 0, 0
        self._order: _Order | None = None

    def start(self, epoch: int, index: int, order: _Order) -> None:
        """Let the next iteration begin with batch ``index`` of ``epoch``, whose batches are ``order``."""
        self._epoch, self._start, self._order = epoch, index, order

    def __iter__(self) -> Iterator[_PartRequest]:
        epoch, index, order = self._epoch, self._start, self._order
        assert order is not None
        while order.has(index):
            for part in self._parts:
                seed = derive_seed(self._seed, epoch, index, part)
                yield _PartRequest(seed, part_of(order.drawn[index], part, self._data_parts))
            index += 1


class IndexedBatches:
    """Batches of a map-style dataset, in the order of the loader's own (batch) sampler.

    Args:
        loader: the user's loader.
        data_parts: A.
        parts: the data parts to fetch.
        seed: keys all batches of the run.

    Raises:
        ValueError: (when an order is drawn) for one that cannot be drawn again, or that the data parts do not divide.
    """

    def __init__(self, loader: DataLoader[Any], data_parts: int, parts: Sequence[int], seed: int) -> None:
        self._loader, self._data_parts, self._parts, self._seed = loader, data_parts, parts, seed
        self._orders: dict[int, _Order] = {}
        self._verified = False
        self._requests = _PartRequests(seed, data_parts, parts)
        self._fetcher: DataLoader[Any] | None = None
        self._stream: Iterator[Any] | None = None
        self._next = (-1, 0)
        # How many batches lie ready at most: a jump over fewer is cheaper to read than to fetch anew.
        self._ahead = loader.num_workers * (loader.prefetch_factor or 0) // max(1, len(parts))

    def order(self, epoch: int) -> _Order:
        """The epoch's batches; those of two neighbouring epochs are kept."""
        if epoch not in self._orders:
            order = self._drawn(epoch)
            if not self._verified and not order.like(self._drawn(epoch)):
                raise ValueError(
                    f"the training loader's {type(_samplers(self._loader)[-1]).__name__} orders an epoch anew each "
                    "time: draw from the global generators of Python, NumPy or torch, from a torch.Generator in its "
                    "attribute 'generator', or from what its set_epoch(epoch) was told."
                )
            self._verified = True
            kept = {other: kept for other, kept in self._orders.items() if abs(other - epoch) == 1}
            self._orders = dict(list(kept.items())[-1:]) | {epoch: order}
        return self._orders[epoch]

    def length(self, epoch: int) -> int | None:
        """Number of batches in the epoch; None for a sampler without ``__len__``."""
        order = self.order(epoch)
        return len(order.drawn) if order.sized else None

    def has(self, epoch: int, index: int) -> bool:
        """Whether the epoch has a batch ``index``."""
        return self.order(epoch).has(index)

    def fetch(self, epoch: int, index: int) -> CodedBatch:
        """The batch: fetched ahead when it is the next one or near, else fetched from there on."""
        order, began = self.order(epoch), time.monotonic()
        if not order.has(index):
            raise no_such_batch(epoch, index)
        with isolated_rng():  # samples are fetched, and a DataLoader's base seed is drawn, in this process
            if self._stream is None or self._next[0] != epoch or not 0 <= index - self._next[1] <= self._ahead:
                if self._fetcher is None:
                    self._fetcher = fetching_like(
                        self._loader,
                        _SeededDataset(self._loader.dataset),
                        self._requests,
                        _FetchingProcess(self._loader.worker_init_fn),
                    )
                self._requests.start(epoch, index, order)
                self._stream, self._next = iter(self._fetcher), (epoch, index)
            for _ in range(self._next[1], index):
                for _ in self._parts:
                    next(self._stream)
            parts = {part: next(self._stream) for part in self._parts}
        self._next = (epoch, index + 1)
        samples = len(order.drawn[index]) // self._data_parts
        return CodedBatch(epoch, index, parts, samples, time.monotonic() - began)

    def know(self, other: Batches) -> None:
        """Share the orders that were drawn under the same seed."""
        if isinstance(other, IndexedBatches) and other._seed == self._seed:
            self._orders, self._verified = dict(other._orders), other._verified

    def fingerprint(self) -> tuple[object, ...]:
        """The first and the last batch of epoch 0, and their number."""
        order = self.order(0)
        order.has(0)
        return self.length(0), order.drawn[:1], order.drawn[-1:] if order.sized else None

    def close(self) -> None:
        """End the processes that fetch ahead."""
        stop = getattr(self._stream, "_shutdown_workers", None)
        if stop is not None:
            stop()
        self._stream = self._fetcher = None

    def __getstate__(self) -> dict[str, Any]:
        requests = _PartRequests(self._seed, self._data_parts, self._parts)
        return self.__dict__ | {"_stream": None, "_fetcher": None, "_requests": requests, "_orders": {}}

    def _drawn(self, epoch: int) -> _Order:
        return _Order(self._loader, self._data_parts, self._seed, epoch)


def fetching_like(
    loader: DataLoader[Any],
    dataset: Dataset[Any],
    batch_sampler: Iterable[Any],
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """A loader of other batches, fetched and collated as ``loader``'s are; ``worker_init_fn``: None: the loader's."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=worker_init_fn or loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _samplers(loader: DataLoader[Any]) -> list[object]:
    owners = [loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    return [owner for owner in owners if owner is not None]


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
