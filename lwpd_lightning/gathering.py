"""How the workers of a fit come together on rank 0: who is started how, at which store, under which key."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lwpd_lightning.data import CodedLoader
from lwpd_lightning.entries import entries
from lwpd_lightning.launcher import Workers, fork_workers, rerun_workers, stays_dead
from lwpd_lightning.links import rendezvous
from lwpd_lightning.meeting import Meeting, run_key_for, starts_elsewhere
from lwpd_lightning.nursery import Nursery
from lwpd_lightning.reduction.sums import SharedMemory
from lwpd_lightning.seat import shared_memory
from lwpd_lightning.settings import ExchangeSettings
from lwpd_lightning.worker_rank import serve_forked

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.fabric.plugins import ClusterEnvironment


class Gathering:
    """The workers of one fit, from its first exchange to its last.

    Args:
        trainer: the trainer, at ``on_train_start``.
        settings: resolved for the world size.
        environment: tells ranks, nodes and the main address.
        local_ranks: processes on this machine.
        num_nodes: machines.
        generation: which fit of this process it is, from 0.

    Attributes:
        local_ranks: as given.
        elsewhere: whether there are workers that this process does not start.
        memory: that the ranks of the exchange share; None: they share none.
        announce_again: says once more what `announce` said: anybody may have written over it.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: ExchangeSettings,
        environment: ClusterEnvironment,
        *,
        local_ranks: int,
        num_nodes: int,
        generation: int,
    ) -> None:
        self._trainer, self._settings, self._environment = trainer, settings, environment
        self.local_ranks, self._num_nodes, self._generation = local_ranks, num_nodes, generation
        self._rank_of = 1 if settings.dedicated_coordinator else 0  # of worker 0
        self.elsewhere = starts_elsewhere(environment, num_nodes)
        self.memory: SharedMemory | None = None
        self.announce_again: Callable[[], None] = lambda: None
        self._meeting: Meeting | None = None
        self._listener: socket.socket | None = None
        self._workers = Workers({})
        self._nursery: Nursery | None = None
        self._entries = entries()

    @property
    def host(self) -> str:
        """The address at which workers reach rank 0."""
        assert self._meeting is not None
        return self._meeting.host if self._num_nodes > 1 else rendezvous.LOOPBACK

    def meet(self, loader: CodedLoader, at: tuple[int, int] | None) -> Meeting:
        """Start the workers of this machine, or let those that run meet for another exchange.

        Args:
            loader: of the training data, for forked workers.
            at: epoch and batch at which the exchange begins; None: before the first one.
        """
        environment, local = self._environment, range(1, self.local_ranks)
        self.memory = self._listener = None
        if self._meeting is None and self.elsewhere:
            host, port = rendezvous.resolve(environment.main_address), environment.main_port
            self._meeting = Meeting(run_key_for(environment, self._num_nodes), host, port, self._generation)
            if not environment.creates_processes_externally:
                self._workers = self._rerun(self._meeting, local)
            return self._meeting
        if self._meeting is not None and self._settings.start_method == "rerun":
            self._meeting = replace(self._meeting, segment=self._meeting.segment + 1)
            return self._meeting
        self._listener = rendezvous.listen(rendezvous.LOOPBACK, 0)
        key, port = run_key_for(environment, self._num_nodes), self._listener.getsockname()[1]
        self._meeting = Meeting(key, rendezvous.LOOPBACK, port, self._generation)
        if self._settings.start_method == "rerun":
            self._workers = self._rerun(self._meeting, local)
        else:
            # Forked before any socket or thread of the exchange exists, so that none of them is inherited.
            self.memory = shared_memory(self._settings, self._trainer.lightning_module)
            leave = self._leaving(self._listener)
            work = self._forked_work(self._meeting, self.memory, leave, loader, at)
            self._workers = fork_workers(local, work)
            if self._settings.restart_workers and len(local):
                self._nursery = Nursery(work, leave)
        return self._meeting

    def announce(self, port: int, seed: int) -> None:
        """Tell all workers at the store that rank 0 listens at ``port``, and the run's seed."""
        assert self._meeting is not None
        segment = self._meeting.segment
        if self._listener is None:
            store = self._entries.store
            assert store is not None
            store = store.of(self._generation)
        else:
            timeout_s, key = self._settings.timeout_s, self._meeting.run_key
            store = rendezvous.Rendezvous.host(self._listener, self._generation, timeout_s, key)
            self._entries.attach(store, [])
        self.announce_again = partial(store.announce, rendezvous.endpoint(self.host, port), seed, segment)
        self.announce_again()

    def exited(self, worker: int, wait_s: float) -> str | None:
        """How a worker's process ended, in words; None where it lives or runs on another machine.

        One that has begun to end is waited for; one that is stopped, or does not answer, is not.
        """
        rank = worker + self._rank_of
        return self._workers.exited(rank, wait_s if wait_s and self._workers.ending(rank) else 0.0)

    def fence(self, worker: int) -> None:
        """Kill a fork that is given up: it was silent for long, may wake, and shares memory with those who go on."""
        if self.memory is not None:
            self._workers.kill(worker + self._rank_of)

    def start_again(self, worker: int) -> bool:
        """Start another process for a lost worker of this machine; kill the one that it had, if that lives.

        Returns whether there is one; on other machines their first process does it (`siblings`).
        """
        rank = worker + self._rank_of
        if not 0 < rank < self.local_ranks or self._environment.creates_processes_externally:
            return False
        if stays_dead(self._trainer, worker):
            return False
        self._workers.kill(rank)
        if self._settings.start_method == "rerun":
            assert self._meeting is not None
            (process,) = self._rerun(self._meeting, range(rank, rank + 1)).processes
        else:
            forked = self._nursery.start(rank) if self._nursery is not None else None
            if forked is None:
                return False
            process = forked
        self._workers.replace(rank, process)
        return True

    def end(self) -> None:
        """End the workers of this machine."""
        self.announce_again = lambda: None  # it holds the store
        if not self.elsewhere:
            self._entries.detach()
        self._workers.end()
        if self._nursery is not None:
            self._nursery.end()
            self._nursery = None

    def _rerun(self, meeting: Meeting, ranks: range) -> Workers:
        return rerun_workers(ranks, lambda rank: meeting.environment(0, rank))

    def _leaving(self, listener: socket.socket) -> Callable[[], None]:
        """Lets go, in a fork, of what is rank 0's alone."""

        def leave() -> None:
            listener.close()
            self._trainer.strategy._fit.remembered.forget()  # type: ignore[attr-defined]

        return leave

    def _forked_work(
        self,
        meeting: Meeting,
        memory: SharedMemory,
        leave: Callable[[], None],
        loader: CodedLoader,
        at: tuple[int, int] | None,
    ) -> Callable[[int], None]:
        def work(rank: int) -> None:
            leave()
            self._environment.set_global_rank(rank)
            self._trainer.strategy._fit = None  # type: ignore[attr-defined]  # whose links and processes are rank 0's
            serve_forked(self._trainer, self._settings, meeting, memory, rank - self._rank_of, loader, at)

        return work
