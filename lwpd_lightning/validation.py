"""Validation in shares: every rank runs each n-th batch of it, and rank 0 goes on with what all of them came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from lwpd_lightning.data import isolated_rng, share_of
from lwpd_lightning.data.randomness import position
from lwpd_lightning.exchange.state import MoreThanData, from_bytes, to_bytes
from lwpd_lightning.links.header import ProtocolError
from lwpd_lightning.validation_results import ALONE, merge, metric_states, own_states, refuse_changed, taken

if TYPE_CHECKING:
    import lightning.pytorch as pl

# How often a waiting rank 0 looks whether it has been told to end.
_LOOK_S = 0.5
# Workers may begin so much later than rank 0, and be no slower.
_LEAST_S = 0.2
# What workers did in time: their ranks' shares, packed, of those that are asked for; waits so many seconds at most.
Arrived = Callable[[set[int], float], Mapping[int, Tensor]]


class SharedValidation:
    """One rank's side of a fit whose validation is run in shares of whole batches.

    Lightning's loop runs rank 0's share as if there were no other. When it is through, those of the workers are added:
    means by their samples, sums, extremes, and the states of torchmetrics objects. What a worker has not done in time
    rank 0 does itself, so that what validation comes to does not depend on who lived.

    Args:
        trainer: the trainer.
        rank: this one, 0 to ranks - 1.
        ranks: of the run.
    """

    def __init__(self, trainer: pl.Trainer, rank: int, ranks: int) -> None:
        self._trainer, self._rank, self._ranks = trainer, rank, ranks
        self._loader: DataLoader[Any] | None = None
        self._total = 0
        self._shares: dict[int, DataLoader[Any]] = {}
        self._started: tuple[float, dict[str, object]] | None = None  # rank 0's share: when, and the module before it
        self._computing = False
        self.arrived: Arrived = lambda ranks, seconds: {}
        self._loop = trainer.fit_loop.epoch_loop.val_loop
        if rank == 0:
            self._store = self._loop._store_dataloader_outputs
            self._loop._store_dataloader_outputs = self._complete  # type: ignore[method-assign]

    @property
    def follows(self) -> bool:
        """Whether Lightning will validate after the batch under way, as far as can be said before its end."""
        loop, fetcher = self._trainer.fit_loop.epoch_loop, self._trainer.fit_loop._data_fetcher
        return fetcher is not None and not loop._skip_next_val and loop._should_check_val_fx(fetcher)

    def close(self) -> None:
        """Leave the loop as it was."""
        vars(self._loop).pop("_store_dataloader_outputs", None)

    def share_of(self, loader: object) -> DataLoader[Any]:
        """This rank's share of the validation loader, whose batches come from now on from it.

        Raises:
            ValueError: for a loader whose batches are not the same on all ranks, or a share of the batches.
        """
        self._loader, self._shares = _refuse_loader(loader), {}
        limit = self._trainer.limit_val_batches
        if isinstance(limit, float) and limit not in (0.0, 1.0):
            raise ValueError(f"limit_val_batches={limit} with validation='shared': use a number of batches.")
        stage = self._trainer.state.stage
        assert stage is not None
        self._total = int(_parse_num_batches(stage, len(self._loader), limit))
        return self._share(self._rank)

    def refuse_several(self) -> None:
        """Raises ValueError where there are several validation loaders: each share is of one."""
        loaders = self._loop._combined_loader
        if loaders is not None and len(loaders.flattened) > 1:
            raise ValueError(
                f"val_dataloader() gave {len(loaders.flattened)} loaders: validation='shared' takes one, or {ALONE}."
            )

    def step(self, step: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Run a validation_step; Lightning's loop on rank 0 counts the batches of its share alone."""
        if self._computing:
            return self._undrawn(step, arguments)
        if self._started is None:
            self.refuse_several()
            self._started = time.monotonic(), own_states(self._trainer.lightning_module)
        if len(arguments) > 1:
            arguments = arguments[0], arguments[1] * self._ranks, *arguments[2:]
        return self._undrawn(step, arguments)

    def compute(self, rank: int) -> Tensor:
        """Run a rank's share on the model as it is; returns what it came to, packed.

        Raises:
            RuntimeError: validation_step does what cannot be told apart from what other ranks do.
        """
        module, loop = self._trainer.lightning_module, self._loop
        before = own_states(module)
        with isolated_rng(), self._evaluating() as results, metric_states(module) as states:
            loop.setup_data()  # perhaps for the first time, or for a reloaded loader
            self.refuse_several()
            for number, batch in enumerate(self._share(rank)):
                batch = self._trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = call._call_strategy_hook(self._trainer, "batch_to_device", batch, dataloader_idx=0)
                results.batch, results.batch_size = batch, None
                of_hooks = loop._build_kwargs(batch, rank + number * self._ranks, None)
                arguments = loop._build_step_args_from_hook_kwargs(of_hooks, "validation_step")
                call._call_strategy_hook(self._trainer, "validation_step", *arguments)
            told = to_bytes(taken(results, states()))
        refuse_changed(before, own_states(module))
        return told

    def _share(self, rank: int) -> DataLoader[Any]:
        assert self._loader is not None
        if rank not in self._shares:
            self._shares[rank] = share_of(self._loader, rank, self._ranks, self._total)
        return self._shares[rank]

    def _complete(self) -> None:
        """Rank 0's loop is through with its share: add those of the others."""
        module, trainer = self._trainer.lightning_module, self._trainer
        started, self._started = self._started, None
        if started is not None:
            refuse_changed(started[1], own_states(module))
            taken(self._loop._results, {})  # refuses in the sanity check what cannot be added
        if not trainer.sanity_checking and started is not None:
            theirs = self._others(time.monotonic() - started[0])
            merge(self._loop._results, module, [theirs[rank] for rank in sorted(theirs)])
        self._store()

    def _others(self, own_s: float) -> dict[int, Mapping[str, Any]]:
        """The other ranks' shares; where they take twice as long as rank 0's own, it does those that lack itself."""
        missing = {rank for rank in range(1, self._ranks) if len(self._share(rank))}
        told: dict[int, Mapping[str, Any]] = {}
        until = time.monotonic() + max(own_s, _LEAST_S)
        while missing:
            if self._trainer.received_sigterm:
                raise SIGTERMException
            left = until - time.monotonic()
            for rank, share in self.arrived(missing, min(max(left, 0.0), _LOOK_S)).items():
                with suppress(ProtocolError, MoreThanData):  # rank 0 does that of a rank which tells no share
                    told[rank] = self._read(share)
            missing -= set(told)
            if missing and left <= 0:
                told[min(missing)] = self._read(self.compute(min(missing)))
                missing -= set(told)
        return told

    def _read(self, share: Tensor) -> Mapping[str, Any]:
        told: Mapping[str, Any] = from_bytes(share, self._trainer.lightning_module.device)
        return told

    @contextmanager
    def _evaluating(self) -> Iterator[_ResultCollection]:
        """As Lightning's loop has it while it validates; yields what takes values that are logged."""
        trainer, module, loop = self._trainer, self._trainer.lightning_module, self._loop
        stage, connector = trainer.state.stage, trainer._logger_connector
        before = connector._first_loop_iter, connector._current_fx
        modes = {owner: owner.training for owner in module.modules()}
        results, loop._results = loop._results, _ResultCollection(training=False)
        trainer.validating = self._computing = True
        log = vars(module).pop("log", None)  # a worker's keeps what training_step logs
        connector._first_loop_iter = False  # a True would reset at each batch what was logged
        module.eval()
        try:
            with (torch.inference_mode if loop.inference_mode else torch.no_grad)():
                yield loop._results
        finally:
            loop._results, trainer.state.stage, self._computing = results, stage, False
            if log is not None:
                vars(module)["log"] = log
            connector._first_loop_iter, connector._current_fx = before
            for owner, training in modes.items():
                owner.training = training

    def _undrawn(self, step: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        device = self._trainer.lightning_module.device
        before = position(device)
        result = step(*arguments)
        if position(device) != before:
            raise RuntimeError(
                "validation_step draws random numbers, of which each rank has others with validation='shared': "
                f"{ALONE}."
            )
        return result


def _refuse_loader(loader: object) -> DataLoader[Any]:
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        batches = loader.batch_sampler
        if type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler:
            return loader
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset):
        what = f"reads a {type(dataset).__name__}, which has no order that all ranks know"
    else:
        what = f"has a {type(sampler).__name__}" if sampler is not None else f"is a {type(loader).__name__}"
    raise ValueError(
        f"the validation loader {what}: validation='shared' cuts a DataLoader without shuffle, of a dataset with a "
        f"length, into whole batches, so use such a one, or {ALONE}."
    )
