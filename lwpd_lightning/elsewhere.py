"""A process that runs the job's command as a worker: it waits for rank 0's fits, serves, and hears what they led to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lwpd_lightning.data import CodedLoader
from lwpd_lightning.launcher import stays_dead, suggested_threads
from lwpd_lightning.links.rendezvous import Rendezvous
from lwpd_lightning.meeting import Meeting, run_key_for
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.siblings import Siblings
from lwpd_lightning.worker_rank import serve

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.fabric.plugins import ClusterEnvironment


class Elsewhere:
    """A rank that is not rank 0, and was not forked from it.

    Args:
        settings: resolved for the world size.
        environment: tells ranks, nodes and the main address.
        local_ranks: processes on this machine.
        num_nodes: machines.
    """

    def __init__(
        self, settings: ExchangeSettings, environment: ClusterEnvironment, *, local_ranks: int, num_nodes: int
    ) -> None:
        self._settings, self._environment = settings, environment
        self._local_ranks, self._num_nodes = local_ranks, num_nodes
        self._generation = 0
        self._store: Rendezvous | None = None
        self._trainer: pl.Trainer | None = None  # of the fit that was served last
        # What Lightning has there: batches in an epoch, and the callbacks that did not act here too.
        self._batches: int | float | None = None
        self._callbacks: Any = None

    def await_fit(self, generation: int) -> int:
        """Wait until rank 0 begins its fit number ``generation``; returns the run's seed.

        Raises:
            TimeoutError: it did not begin in ``timeout_s``.
            ConnectionError: rank 0's store is gone.
        """
        self._generation = generation
        return self._join().coordinator()[1]

    def serve(self, trainer: pl.Trainer, worker: int, loader: CodedLoader) -> None:
        """Be worker ``worker`` of the fit until it ends; raises what its training_step raised."""
        threads, meeting = torch.get_num_threads(), self._meeting()
        torch.set_num_threads(suggested_threads(self._local_ranks))
        siblings = self._start_siblings(meeting, trainer, worker)
        self._trainer, self._callbacks = trainer, trainer.callbacks  # type: ignore[attr-defined]
        try:
            serve(trainer, self._settings, meeting, worker, loader)
        finally:
            siblings.end()
            torch.set_num_threads(threads)
        # Lightning's loop finds nothing left to train, and ends the fit as it does everywhere.
        self._batches, trainer.fit_loop.max_batches = trainer.fit_loop.max_batches, 0

    def leave(self) -> None:
        """Leave the fit loop as it was before the fit."""
        if self._batches is not None:
            assert self._trainer is not None
            self._trainer.fit_loop.max_batches, self._batches = self._batches, None

    def outcome(self, entry: int) -> str:
        """What call number ``entry`` led to on rank 0, once it is over (`Rendezvous.told`)."""
        if self._callbacks is not None:
            self._trainer.callbacks, self._callbacks = self._callbacks, None  # type: ignore[union-attr]
        return self._join().told(entry, self._environment.global_rank())

    def _join(self) -> Rendezvous:
        # Once: where rank 0 has ended meanwhile, what was connected says so at once, and a new connection waits for it.
        if self._store is None:
            self._store = self._meeting().store(self._settings.timeout_s)
        return self._store.of(self._generation)

    def _meeting(self) -> Meeting:
        environment = self._environment
        key = run_key_for(environment, self._num_nodes)
        return Meeting(key, environment.main_address, environment.main_port, self._generation)

    def _start_siblings(self, meeting: Meeting, trainer: pl.Trainer, worker: int) -> Siblings:
        environment = self._environment
        node, others = environment.node_rank(), range(1, self._local_ranks)
        if environment.local_rank() or environment.creates_processes_externally:
            others = range(0)

        def again(rank: int) -> bool:
            return self._settings.restart_workers and not stays_dead(trainer, worker + rank)

        return Siblings(others, lambda rank: meeting.environment(node, rank), again)
