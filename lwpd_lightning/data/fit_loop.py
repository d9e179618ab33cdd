"""The training loader in Lightning's fit loop: which batch comes, and reloading it every n epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from torch.utils._pytree import tree_unflatten

from lwpd_lightning.data.loader import CodedLoader
from lwpd_lightning.data.randomness import derive_seed, isolated_rng, seed_everything_locally

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.loops.fit_loop import _FitLoop


def training_loader(
    trainer: pl.Trainer, loader: object, *, data_parts: int, parts: Sequence[int], seed: int
) -> CodedLoader:
    """What Lightning iterates over in place of the user's training ``loader``.

    A loader that replaces another in mid-fit (``reload_dataloaders_every_n_epochs``) keeps that one's seed.

    Args:
        trainer: the trainer, which asks for it.
        loader: what the user's ``train_dataloader`` gave.
        data_parts: A.
        parts: the data parts to fetch.
        seed: keys all batches of the run.

    Raises:
        ValueError: for loaders that cannot be cut into data parts reproducibly.
    """
    loop, before = trainer.fit_loop, loader_of(trainer)
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]  # set by a connector
        loop._data_source = _SeededSource(loop)
    if before is not None:
        before.close()
        seed = before.seed
    users: Any = loader.loader if isinstance(loader, CodedLoader) else loader  # in a CombinedLoader fitted before
    return CodedLoader(users, data_parts=data_parts, parts=parts, seed=seed, place=FitLoopPlace(loop))


def loader_of(trainer: pl.Trainer) -> CodedLoader | None:
    """The loader that the fit loop iterates over; None before it was set up."""
    combined = trainer.fit_loop._combined_loader
    loader = combined.flattened[0] if combined is not None else None
    return loader if isinstance(loader, CodedLoader) else None


def following(trainer: pl.Trainer, loader: CodedLoader, epoch: int) -> CodedLoader:
    """The loader of ``epoch`` on a worker: ``loader``, or what ``reload_dataloaders_every_n_epochs`` puts in its place.

    To be called at the start of each epoch that the worker computes in, where Lightning reloads on rank 0: after
    ``on_train_epoch_end`` of the epoch before and before ``on_train_epoch_start``. Reloads of epochs that the worker
    skipped are made up for, one by one, each at its ``trainer.current_epoch``; afterwards that is ``epoch`` wherever
    something was reloaded. ``loader`` is closed when another takes its place.

    Args:
        trainer: the worker's trainer, after ``fit_loop.setup_data()``.
        loader: the worker's loader so far.
        epoch: the epoch that begins.
    """
    loop, every = trainer.fit_loop, trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    reloaded = False
    while every and epoch - loop._last_train_dl_reload_epoch >= every:
        at = int(loop._last_train_dl_reload_epoch) + every
        loop.epoch_progress.current.completed = at
        loop.setup_data()
        loop._last_train_dl_reload_epoch, reloaded = at, True  # Lightning keeps the old one where there is no batch
    if not reloaded:
        return loader
    loop.epoch_progress.current.completed = epoch
    loader.close()
    fresh = loader_of(trainer)
    assert fresh is not None
    return fresh.for_worker(loader.parts, loader.seed)


class FitLoopPlace:
    """Where Lightning's fit loop stands."""

    def __init__(self, loop: _FitLoop) -> None:
        self._loop = loop

    @property
    def _batches(self) -> Any:
        return self._loop.epoch_loop.batch_progress

    @property
    def epoch(self) -> int:
        """The epoch that the loop is in or about to begin."""
        return int(self._loop.epoch_progress.current.processed)  # type: ignore[attr-defined]

    @property
    def trained(self) -> tuple[int, int] | None:
        """Epoch and index of the batch that is trained on, from its transfer to the end of the step; later the next."""
        return self.epoch, int(self._batches.current.processed)

    @property
    def limit(self) -> float:
        """Number of batches after which Lightning ends an epoch in any case."""
        return self._loop.max_batches

    def begin(self) -> None:
        """Keep Lightning from fetching the first batch before it knows where a resumed epoch goes on."""
        if isinstance(fetcher := self._loop._data_fetcher, _PrefetchDataFetcher):
            fetcher.prefetch_batches = 0

    def start_of(self, iteration: Iterator[Any]) -> int | None:
        """Where a resumed epoch goes on, or 0; None where it is a user's, who looks at the data."""
        combined = self._loop._combined_loader
        mode = combined._iterator if combined is not None else None
        if mode is None or not any(iteration is own for own in mode.iterators):
            return None
        epoch_loop = self._loop.epoch_loop
        if self._batches.is_last_batch:
            # Resumed at the end of an epoch, Lightning is in the next one already, and where it does not know the
            # length keeps counting batches from the last one of the old.
            self._batches.reset_on_run()
            epoch_loop.scheduler_progress.reset_on_run()
            epoch_loop.automatic_optimization.optim_progress.reset_on_run()
            epoch_loop.val_loop.batch_progress.total.reset()
        return int(self._batches.current.processed)

    def ends(self, length: int) -> None:
        """Tell Lightning that this batch is the epoch's last one."""
        if self._loop._data_fetcher is not None:
            self._loop._data_fetcher.length = length

    def structured(self, part: Any) -> Any:
        """A data part in the list, dictionary or other collection that holds the training loader."""
        combined = self._loop._combined_loader
        return part if combined is None else tree_unflatten([part], combined._spec)


class _SeededSource(_DataLoaderSource):
    """Where the training loader comes from; reloads it under random numbers that are the same on every rank."""

    def __init__(self, loop: _FitLoop) -> None:
        super().__init__(loop._data_source.instance, loop._data_source.name)
        self._loop = loop

    def dataloader(self) -> Any:
        """The user's loader, anew."""
        before = loader_of(self._loop.trainer)
        if before is None:
            return super().dataloader()
        with isolated_rng():
            seed_everything_locally(derive_seed(before.seed, self._loop.trainer.current_epoch))
            return super().dataloader()
