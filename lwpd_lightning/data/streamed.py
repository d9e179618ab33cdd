"""Batches of an iterable dataset: every process reads the whole stream, and collates the data parts that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, get_worker_info

from lwpd_lightning.data.batch import Batches, CodedBatch, no_such_batch, part_of
from lwpd_lightning.data.likeness import alike
from lwpd_lightning.data.randomness import Randomness, derive_seed, isolated_rng, seed_everything_locally

_HELD = 2  # batches: the one that is trained on, and the one that shows that the epoch goes on


class _Cut(NamedTuple):
    """A batch of the stream: samples in each data part (0: too few for one in each), and the parts themselves."""

    samples: int
    parts: dict[int, Any]


class _Cutting:
    """``collate_fn`` that cuts a batch's samples into data parts and collates some, each under a seed of its own."""

    def __init__(self, collate: Callable[[list[Any]], Any], data_parts: int, parts: Sequence[int], seed: int) -> None:
        self._collate, self._data_parts, self._parts, self._seed = collate, data_parts, parts, seed
        self._count = 0  # of the batches that this process has fetched
        self.skipping = False

    def __call__(self, samples: list[Any]) -> _Cut:
        info, count, size = get_worker_info(), self._count, len(samples) // self._data_parts
        self._count += 1
        if self.skipping or not size:
            return _Cut(size, {})
        parts = {}
        with isolated_rng():
            for part in self._parts:
                seed_everything_locally(derive_seed(self._seed, info.id if info is not None else 0, count, part))
                parts[part] = self._collate(part_of(samples[: size * self._data_parts], part, self._data_parts))
        return _Cut(size, parts)


class _SeededProcess:
    """``worker_init_fn`` that seeds a fetching process after the user's, which may tell ranks apart."""

    def __init__(self, users: Callable[[int], None] | None, seed: int) -> None:
        self._users, self._seed = users, seed

    def __call__(self, number: int) -> None:
        if self._users is not None:
            self._users(number)
        seed_everything_locally(derive_seed(self._seed, number))


class StreamedBatches:
    """Batches of an iterable dataset, in the order in which the user's DataLoader gives them in a single process.

    An epoch is the stream from its start, read with random generators that are seeded with (seed, epoch); in
    ``num_workers`` processes each reads its own copy and batches come from them in turn, as always. Of a batch, the
    data parts are cut before collation. Whoever asks for a later batch reads on to it; for an earlier one, or in
    another epoch, from the start. Fetching processes live for one epoch.

    Args:
        loader: the user's loader.
        data_parts: A.
        parts: the data parts to fetch.
        seed: keys all batches of the run.

    Raises:
        ValueError: (when the first batch is fetched) for a stream that is other when it is read again.
    """

    def __init__(self, loader: DataLoader[Any], data_parts: int, parts: Sequence[int], seed: int) -> None:
        self._loader, self._data_parts, self._parts, self._seed = loader, data_parts, parts, seed
        self._verified = False
        self._epoch: int | None = None
        self._stream: Iterator[_Cut] | None = None
        self._read, self._ended = 0, False
        self._held: dict[int, CodedBatch] = {}

    def length(self, epoch: int) -> int | None:
        """Number of batches by the dataset's ``__len__``, where it has one; `has` knows better."""
        try:
            samples = len(self._loader.dataset)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        assert self._loader.batch_size is not None
        whole, rest = divmod(samples, self._loader.batch_size)
        return whole + (rest >= self._data_parts and not self._loader.drop_last)

    def has(self, epoch: int, index: int) -> bool:
        """Whether the stream goes on that far; reads it to there."""
        if epoch == self._epoch and index < self._read:
            return True
        return self._reach(epoch, index)

    def fetch(self, epoch: int, index: int) -> CodedBatch:
        """The batch; reads the stream to it."""
        if not self._reach(epoch, index):
            raise no_such_batch(epoch, index)
        return self._held[index]

    def know(self, other: Batches) -> None:
        """Leave it to the process that made ``other`` to read the first batch twice."""
        self._verified = True

    def fingerprint(self) -> tuple[object, ...]:
        """What makes batches of a stream."""
        loader = self._loader
        return type(loader.dataset).__name__, loader.batch_size, loader.drop_last, loader.num_workers

    def close(self) -> None:
        """End the processes that fetch ahead."""
        stop = getattr(self._stream, "_shutdown_workers", None)
        if stop is not None:
            stop()
        self._stream = self._epoch = None
        self._held = {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_randomness", "_cutting")  # made when reading starts
        } | {"_stream": None, "_epoch": None, "_held": {}}

    def _reach(self, epoch: int, index: int) -> bool:
        if epoch != self._epoch or (index < self._read and index not in self._held):
            self._start(epoch)
        while self._read <= index and not self._ended:
            self._read_on(skipping=self._read < index)
        return index in self._held

    def _start(self, epoch: int) -> None:
        self._open(epoch)
        if not self._verified and self._read_on():
            self._verified, first = True, self._held[0]
            self._open(epoch)
            if not self._read_on() or not alike(first.parts, self._held[0].parts):
                raise ValueError(
                    f"the training set {type(self._loader.dataset).__name__} gives other samples when an epoch is read "
                    "again: let its __iter__ start anew each time, and draw from the global generators of Python, NumPy"
                    " or torch, which are seeded for every epoch."
                )

    def _open(self, epoch: int) -> None:
        self.close()
        loader, seed = self._loader, derive_seed(self._seed, epoch)
        self._cutting = _Cutting(loader.collate_fn, self._data_parts, self._parts, seed)
        self._randomness = Randomness(seed)
        fetcher = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=self._cutting,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=_SeededProcess(loader.worker_init_fn, seed),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )
        with self._randomness():
            self._stream = iter(fetcher)
        self._epoch, self._read, self._ended = epoch, 0, False

    def _read_on(self, *, skipping: bool = False) -> bool:
        """Read to the next batch that has samples for all data parts; False at the end of the stream."""
        assert self._stream is not None and self._epoch is not None
        began = time.monotonic()
        self._cutting.skipping = skipping
        with self._randomness():
            cut = next((cut for cut in self._stream if cut.samples), None)
        if cut is None:
            self._ended = True
            return False
        if not skipping:
            batch = CodedBatch(self._epoch, self._read, cut.parts, cut.samples, time.monotonic() - began)
            self._held = dict(list(self._held.items())[1 - _HELD :]) | {self._read: batch}
        self._read += 1
        return True
