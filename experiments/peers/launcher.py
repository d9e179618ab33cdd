"""Starting the other ranks of a peer's fit: forked from rank 0, as the workers of coded exchange are.

Lightning's own launcher replays a Hydra sweep's arguments in every rank, so that world sizes go wrong from the second
job on, and kills the job when one rank dies. Here one fit is one set of forks, and what broke it is told.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed import TCPStore

from lwpd_lightning.data import derive_seed, seed_everything_locally
from lwpd_lightning.launcher import Workers, fork_workers, suggested_threads
from lwpd_lightning.links.rendezvous import LOOPBACK, listen

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from .strategy import DDPPeer

# A rank that broke ends before the others lose their connections to it, and is seen to have within this time.
_BLAME_S = 1.0
# Ranks that have taken their last step only have to return.
_RETURN_S = 10.0


class RankFailed(RuntimeError):
    """A rank other than rank 0 broke the fit; the message holds its traceback, or how it ended without one."""


class ForkedRanks(_Launcher):
    """Runs a fit on all ranks, and everything else (validate, test, predict) on rank 0 alone.

    On several machines, or under an outside launcher, each process that was started is a rank; the first one of a
    machine forks the others there.
    """

    def __init__(self, strategy: DDPPeer) -> None:
        self._strategy = strategy

    @property
    def is_interactive_compatible(self) -> bool:
        """Forks need no script that could run again."""
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer, **kwargs: Any) -> Any:
        """Call ``function`` on every rank and return what it returned on this one.

        Raises:
            RankFailed: another rank broke the fit.
        """
        strategy = self._strategy
        if trainer.state.fn is not TrainerFn.FITTING:
            return function(*args, **kwargs) if strategy.is_global_zero else None
        strategy.refuse(trainer)
        strategy.begin()
        threads = torch.get_num_threads()
        torch.set_num_threads(suggested_threads(strategy.num_processes))
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._on_all_ranks(lambda: function(*args, **kwargs), _Reports(Path(folder)))
        finally:
            strategy.store = None
            torch.set_num_threads(threads)

    def _on_all_ranks(self, fit: Callable[[], Any], reports: _Reports) -> Any:
        strategy, first = self._strategy, self._strategy.global_rank
        assert strategy.cluster_environment is not None
        external = strategy.cluster_environment.creates_processes_externally
        local = [] if external else list(range(1, strategy.num_processes))
        # On one machine rank 0 listens before it forks, so that no other job can take the port.
        listener = listen(LOOPBACK, 0) if local and strategy.num_nodes == 1 else None
        port = listener.getsockname()[1] if listener is not None else 0

        def work(local_rank: int) -> None:
            try:
                warnings.simplefilter("ignore")  # rank 0 warns for all
                os.environ["LOCAL_RANK"] = str(local_rank)
                strategy.set_world_ranks()
                seed_everything_locally(derive_seed(strategy.seed, strategy.global_rank))
                if listener is not None:
                    listener.close()  # rank 0's alone
                    strategy.store = TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False)
                fit()
            except BaseException:
                reports.write(first + local_rank, traceback.format_exc())
                raise

        # Forked before any socket or thread of the process group exists, so that none of them is inherited.
        workers = fork_workers(local, work)
        try:
            if listener is not None:
                strategy.store = TCPStore(
                    LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
                )
            result = fit()
            for local_rank in local:
                how = workers.exited(local_rank, _RETURN_S) or f"did not return within {_RETURN_S:g} s"
                if how != "exited with code 0":
                    raise RankFailed(reports.told(first + local_rank, how))
            return result
        except RuntimeError as error:  # as collectives raise on the ranks that did not break them
            culprit = None if isinstance(error, RankFailed) else _culprit(workers, local, first, reports)
            if culprit is None:
                raise
            raise RankFailed(culprit) from error
        finally:
            workers.end()

    def kill(self, signum: Any) -> None:
        """End the fit at once, from Lightning's SIGTERM handler; `launch` ends the other ranks on its way out.

        Lightning would broadcast the signal from within the handler, amid whatever collective the others are in, and
        sometimes all would wait for ever.
        """
        raise SystemExit(128 + int(signum))


class _Reports:
    """The tracebacks of ranks that failed, as files in a folder that they share.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, rank: int, trace: str) -> None:
        """Leave a traceback, whole or not at all."""
        unfinished = self._folder / f".{rank}"
        unfinished.write_text(json.dumps([time.monotonic(), trace]), encoding="utf-8")
        unfinished.rename(self._folder / str(rank))

    def read(self) -> Mapping[int, tuple[float, str]]:
        """rank -> when it failed, by the machine's monotonic clock, and its traceback."""
        paths = self._folder.glob("[0-9]*")
        return {int(path.name): tuple(json.loads(path.read_text(encoding="utf-8"))) for path in paths}

    def told(self, rank: int, how: str) -> str:
        """A sentence about a rank that ended, with its traceback where it left one."""
        _, trace = self.read().get(rank, (0.0, ""))
        return f"rank {rank} failed:\n{trace}" if trace else f"rank {rank} {how}"


def _culprit(workers: Workers, local: list[int], first: int, reports: _Reports) -> str | None:
    """Which rank broke a collective that failed just now on rank 0; None where it seems to be rank 0 itself.

    A rank that ended without a traceback was killed, and broke all others; else the first to fail did.
    """
    failed_at = time.monotonic()
    while True:
        waited = time.monotonic() - failed_at > _BLAME_S
        for local_rank in local:
            how = workers.exited(local_rank, 0.0)
            if how not in (None, "exited with code 0") and first + local_rank not in reports.read():
                return reports.told(first + local_rank, how or "")
        before = {when: rank for rank, (when, _) in reports.read().items() if when < failed_at}
        if waited:
            return reports.told(before[min(before)], "") if before else None
        time.sleep(_BLAME_S / 20)
