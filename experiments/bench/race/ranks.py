"""One race: the training command on every host of a testbed, forked from a process that has imported it already.

Eight imports of torch on a small machine take longer than many a race. Each fork enters its host's network namespace
and then runs `experiments.train` as the command line would.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...train import main
from ..forked import work_and_end
from .plan import Race, links_of
from .testbed import Host, ShapedHosts
from .traffic import MARK, Traffic, of_process

_PORT = 29500
_POLL_S = 0.1
_GRACE_S = 15.0


def run(race: Race, directory: Path, limit_s: float, command: Callable[[], None] = main) -> dict[str, Any]:
    """Run a race and return its row: the race, its summary and, on a testbed, what each host sent and received.

    A race that takes longer than ``limit_s``, or that failed (``failed`` then names the log), reached no target.

    Args:
        race: what to run.
        directory: of its files; made.
        limit_s: how long it may take.
        command: what each rank runs, with `experiments.train`'s command line and results.
    """
    links = links_of(race.links)
    shaped = links.mbit is not None
    bed: AbstractContextManager[ShapedHosts | None] = (
        ShapedHosts(race.ranks, links.mbit, links.coordinator_mbit) if shaped else nullcontext()
    )
    with bed as testbed:
        hosts: list[Host | None] = [*testbed.hosts] if testbed is not None else [None] * race.ranks
        started = time.monotonic()
        failed, first = _train(race, hosts, directory, limit_s, command)
        wall_s = time.monotonic() - started
        traffic = [host.traffic() for host in hosts if host is not None]
    measured = _measured(directory) if failed is None else {"reached": False, "time_to_target_s": None}
    return {**vars(race), **measured, "failed": failed, "wall_s": wall_s, **_wire(traffic), **first}


def _train(
    race: Race, hosts: list[Host | None], directory: Path, limit_s: float, command: Callable[[], None]
) -> tuple[str | None, dict[str, object]]:
    """Train on all hosts; what went wrong, if anything did, and what had travelled at about the first update."""
    directory.mkdir(parents=True)
    key = secrets.token_hex(32)
    address = hosts[0].address if hosts[0] is not None else "127.0.0.1"
    ranks = [_fork(race, rank, hosts[place], directory, command, {
        "NODE_RANK": str(rank), "MASTER_ADDR": address, "MASTER_PORT": str(_PORT), "LWPD_RUN_KEY": key,
        "GLOO_SOCKET_IFNAME": hosts[place].interface if hosts[place] is not None else "lo",
    }) for rank, place in enumerate(race.hosts)]  # fmt: skip
    first: dict[str, object] = {}
    deadline = time.monotonic() + limit_s
    late, ended = False, dict.fromkeys(ranks)
    try:
        while any(code is None for code in ended.values()):
            for pid in [pid for pid, code in ended.items() if code is None]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            if not first and (directory / MARK).exists():
                first = _at_first_update(directory, ranks[-race.ranks :], hosts)
            of_rank_zero = ended[ranks[0]]
            if of_rank_zero is not None and deadline > time.monotonic() + _GRACE_S:
                deadline = time.monotonic() + _GRACE_S  # the others have nobody to talk to any more
            if time.monotonic() > deadline:
                late = of_rank_zero is None
                break
            time.sleep(_POLL_S)
    finally:
        for pid in [pid for pid, code in ended.items() if code is None]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if late:
        return f"not done after {limit_s:.0f} s", first
    failed = [rank for rank, pid in enumerate(ranks) if ended[pid] not in (0, None)]
    return (f"rank {failed[0]} failed, see {directory / f'rank{failed[0]}.log'}" if failed else None), first


def _at_first_update(directory: Path, ranks: list[int], hosts: list[Host | None]) -> dict[str, object]:
    """What hosts had sent and received, and how many seconds after the first update that was."""
    late_s = time.monotonic() - float((directory / MARK).read_text())
    traffic = [of_process(pid, host.interface) for pid, host in zip(ranks, hosts, strict=True) if host is not None]
    wire = _wire(traffic)
    return {"first_sent": wire["sent"], "first_received": wire["received"], "first_late_s": late_s}


def _fork(
    race: Race,
    rank: int,
    host: Host | None,
    directory: Path,
    command: Callable[[], None],
    environment: dict[str, str],
) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid

    def work() -> None:
        log = os.open(directory / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if host is not None:
            host.enter()
        os.environ.update(environment)
        run_dir = directory if rank == 0 else directory / f"rank{rank}"
        sys.argv = ["train", *race.overrides(), f"hydra.run.dir={run_dir}"]
        command()

    work_and_end(work)


def _measured(directory: Path) -> dict[str, Any]:
    summary = json.loads((directory / "summary.json").read_text())
    reached = summary["time_to_target_s"] is not None
    kept = ("updates", "update_s_mean", "compute_s_mean", "wait_s_mean", "parameters", "val_acc", "val_bpc",
            "bytes_up_per_update_per_worker", "startup_s", "fit_s", "arrivals_mean", "resyncs")  # fmt: skip
    return {
        "reached": reached,
        # From the first update on: how long processes take to find each other is not what is raced.
        "time_to_target_s": summary["time_to_target_s"] - summary["startup_s"] if reached else None,
        **{name: summary[name] for name in kept if name in summary},
    }


def _wire(traffic: list[Traffic]) -> dict[str, list[int]]:
    return {"sent": [host.sent for host in traffic], "received": [host.received for host in traffic]}
