"""Batches that every rank can name: batch (epoch, index) and its data parts are pure functions of the seed.

The user's own DataLoader says what a batch is; `CodedLoader` only fixes the order of its samples and fetches, for one
worker, the data parts that its row of the code needs. A worker that skipped versions asks for a later batch and gets
exactly the samples that any other worker has in it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset


@dataclass(frozen=True)
class CodedBatch:
    """The data parts of one update's batch that one worker needs.

    Attributes:
        epoch: epoch of the batch.
        index: index of the batch in its epoch.
        parts: data part -> what the user's ``collate_fn`` made of its samples.
        part_samples: number of samples in each data part.
        fetch_s: seconds that fetching it took.
    """

    epoch: int
    index: int
    parts: dict[int, Any]
    part_samples: int
    fetch_s: float = 0.0


def derive_seed(*key: int) -> int:
    """A 63-bit seed from a tuple of integers; different tuples give unrelated seeds.

    >>> derive_seed(0, 1) == derive_seed(0, 1) != derive_seed(1, 0)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def seed_everything_locally(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Put Python's, NumPy's and torch's CPU generators back as they were."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


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


class _PartRequests:
    """The batch sampler of the fetching DataLoader: some data parts of all batches from ``start`` on."""

    def __init__(self, seed: int, data_parts: int, parts: Sequence[int]) -> None:
        self._seed, self._data_parts, self._parts = seed, data_parts, parts
        self._epoch, self._start, self._order = 0, 0, list[Sequence[Any]]()

    def start(self, epoch: int, index: int, order: list[Sequence[Any]]) -> None:
        """Let the next iteration begin with batch ``index`` of ``epoch``, whose batches are ``order``."""
        self._epoch, self._start, self._order = epoch, index, order

    def __iter__(self) -> Iterator[_PartRequest]:
        for index in range(self._start, len(self._order)):
            for part in self._parts:
                seed = derive_seed(self._seed, self._epoch, index, part)
                yield _PartRequest(seed, _part(self._order[index], part, self._data_parts))

    def __len__(self) -> int:
        return (len(self._order) - self._start) * len(self._parts)


class CodedLoader:
    """The training DataLoader of a coded run.

    ``batch_size`` is the whole update's: a batch is cut, in the loader's order, into ``data_parts`` equal runs of
    samples. With ``drop_last=False`` a short last batch is trimmed to a multiple of ``data_parts`` and left out when it
    has fewer samples than that; ``drop_last=True`` leaves it out as always. The order of an epoch is what the loader's
    own (batch) sampler yields when it is told the epoch and every random generator is seeded with (seed, epoch).

    Iterating yields, as on a single device, one ordinary batch for each update: the first of the worker's own data
    parts. All of them are in `current`.

    Args:
        loader: the user's loader; collate_fn, num_workers, pin_memory and the rest are kept.
        data_parts: A.
        parts: the data parts to fetch.
        seed: keys all batches of the run.
        position: index of the first batch when iteration starts: 0, or where a resumed epoch goes on.

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
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        _refuse_unsplittable(loader, data_parts)
        self.loader = loader
        self.current: CodedBatch | None = None
        self.data_parts, self.parts, self.seed = data_parts, tuple(parts), seed
        self._position = position
        self._epoch = 0
        self._ordered: tuple[int, list[Sequence[Any]]] | None = None
        self._requests = _PartRequests(seed, data_parts, self.parts)
        self._stream: Iterator[Any] | None = None
        self._next = (-1, 0)
        # How many batches lie ready at most: a jump over fewer is cheaper to read than to fetch anew.
        self._ahead = loader.num_workers * (loader.prefetch_factor or 0) // max(1, len(self.parts))
        self._fetcher = fetching_like(loader, _SeededDataset(loader.dataset), self._requests)

    def for_worker(self, parts: Sequence[int], seed: int) -> CodedLoader:
        """The same loader with another worker's data parts, under the seed that rank 0 announced."""
        other = CodedLoader(self.loader, data_parts=self.data_parts, parts=parts, seed=seed)
        if seed == self.seed:
            other._ordered = self._ordered
        return other

    @property
    def sampler(self) -> CodedLoader:
        """Lightning looks here for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of updates in the epoch."""
        return len(self._order(self._epoch))

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._position(), len(self)):
            self.current = self.batch(self._epoch, index)
            yield self.current.parts[self.parts[0]]

    def batch(self, epoch: int, index: int) -> CodedBatch:
        """Batch ``index`` of ``epoch``: fetched ahead when it is the next one or near, else fetched from there on."""
        order = self._order(epoch)
        with isolated_rng():  # samples are fetched, and a DataLoader's base seed is drawn, in this process
            if self._stream is None or self._next[0] != epoch or not 0 <= index - self._next[1] <= self._ahead:
                self._requests.start(epoch, index, order)
                self._stream, self._next = iter(self._fetcher), (epoch, index)
            for _ in range(self._next[1], index):
                for _ in self.parts:
                    next(self._stream)
            parts = {part: next(self._stream) for part in self.parts}
        self._next = (epoch, index + 1)
        return CodedBatch(epoch, index, parts, len(order[index]) // self.data_parts)

    def fingerprint(self) -> bytes:
        """Bytes that two loaders share when seed, data parts and batches (of epoch 0) agree."""
        order = self._order(0)
        return repr((self.seed, self.data_parts, len(order), order[:1], order[-1:])).encode()

    def close(self) -> None:
        """End the processes that fetch ahead."""
        stop = getattr(self._stream, "_shutdown_workers", None)
        if stop is not None:
            stop()
        self._stream = self._fetcher._iterator = None  # the latter: persistent ones, which have ended too

    def _order(self, epoch: int) -> list[Sequence[Any]]:
        if self._ordered is None or self._ordered[0] != epoch:
            batches = self._drawn(epoch)
            if self._ordered is None and batches != self._drawn(epoch):
                raise ValueError(
                    f"the training loader's {type(_samplers(self.loader)[-1]).__name__} orders an epoch anew each "
                    "time: draw from the global generators of Python, NumPy or torch, from a torch.Generator in its "
                    "attribute 'generator', or from what its set_epoch(epoch) was told."
                )
            self._ordered = (epoch, _trimmed(batches, self.data_parts))
        return self._ordered[1]

    def _drawn(self, epoch: int) -> list[Sequence[Any]]:
        seed, samplers = derive_seed(self.seed, epoch), _samplers(self.loader)
        with isolated_rng(), _own_generators(samplers, seed):
            for sampler in samplers:
                if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                    set_epoch(epoch)
            seed_everything_locally(seed)
            return [list(batch) for batch in self.loader.batch_sampler]  # type: ignore[union-attr]


def fetching_like(loader: DataLoader[Any], dataset: Dataset[Any], batch_sampler: Iterable[Any]) -> DataLoader[Any]:
    """A loader of other batches, fetched and collated as ``loader``'s are."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _part(indices: Sequence[Any], part: int, data_parts: int) -> Sequence[Any]:
    size = len(indices) // data_parts
    return indices[part * size : (part + 1) * size]


def _trimmed(batches: Sequence[Sequence[Any]], data_parts: int) -> list[Sequence[Any]]:
    for index, batch in enumerate(batches[:-1]):
        if len(batch) % data_parts:
            raise ValueError(
                f"batch {index} has {len(batch)} samples, which {data_parts} data parts do not divide: "
                f"use a batch sampler whose batches are multiples of {data_parts}."
            )
    trimmed = [batch[: len(batch) - len(batch) % data_parts] for batch in batches]
    return trimmed if not trimmed or len(trimmed[-1]) else trimmed[:-1]


def _samplers(loader: DataLoader[Any]) -> list[object]:
    owners = [loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    return [owner for owner in owners if owner is not None]


@contextmanager
def _own_generators(samplers: list[object], seed: int) -> Iterator[None]:
    """Seed the torch generators that samplers carry themselves, and put them back."""
    generators = [g for owner in samplers if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _refuse_unsplittable(loader: object, data_parts: int) -> None:
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the training loader is a {type(loader).__name__}: coded exchange cuts a torch DataLoader's batches into "
            "data parts, so return one DataLoader from train_dataloader()."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"the training set {type(loader.dataset).__name__} is iterable: workers must be able to name a batch's "
            "samples, so use a map-style dataset (__getitem__ and __len__)."
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise ValueError(
            f"the training loader {type(loader).__name__} overrides __iter__: coded exchange fetches data parts by "
            "itself, so use a torch DataLoader with a collate_fn instead."
        )
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
