"""Many short runs, each with 2 to 5 faults drawn from a seed: `python -m experiments.chaos.schedules [--count 200]`.

Of each run is checked, by its event log: it ends within a bound, no committed update is lost (versions follow each
other, rank 0 ends where it was to end), nobody is given up whom no fault befell, and after each fault the next updates
come within max(1 s, heartbeat_s) and one update. The command prints a table, names the seeds of all violations, and
ends with 1 where there is one. Runs take turns: ranks on hosts of their own, where links can be cut (root, Linux,
iproute2), and workers that rank 0 forks, with signals, strangers and NaN alone.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401 - for all ranks of all runs
import torch

from ..bench.race.testbed import refuse_missing_tools
from .checks import next_updates, one_update_s, stalled_s, violations
from .job import Settings
from .log import read
from .run import run
from .schedule import KINDS, SIGNALS, schedule

_WORKERS, _WAIT_FOR, _HEARTBEAT_S, _COMPUTE_S = 6, 4, 1.0, 0.03
_SECONDS = 5.0  # in which the faults of a run begin, where there is a place for them
_LIMIT_S = 120.0
# A machine that does not run the command itself for so long, or an update before any fault, may silence a healthy rank:
# a run with violations is repeated.
_STALL_S, _TIMES = _HEARTBEAT_S / 3, 3


def hosts_possible() -> str | None:
    """None where ranks can be on hosts of their own; else why not."""
    try:
        refuse_missing_tools()
    except OSError as error:
        return str(error)
    return None


def one(seed: int, directory: Path, *, hosts: bool, timed: bool) -> tuple[list[str], str, float]:
    """Run one schedule; its violations, a line about it, and for how long the machine stalled, in seconds."""
    count = random.Random(seed).randint(2, 5)
    faults = schedule(seed, _WORKERS, _WORKERS - _WAIT_FOR, _SECONDS, count, KINDS if hosts else SIGNALS)
    settings = Settings(_WORKERS, _WAIT_FOR, _HEARTBEAT_S, _COMPUTE_S, None, hosts)
    started = time.monotonic()
    events = read(run(settings, faults, directory, seed=seed, limit_s=_LIMIT_S))
    found = violations(events, timed=timed)
    longest = max((waited for _, waited in next_updates(events)), default=0.0)
    updates = sum(event["event"] == "update" for event in events)
    lost = [event["worker"] for event in events if event["event"] == "lost"]
    kinds = " ".join(f"{fault.kind}{''.join(map(str, fault.workers))}" for fault in faults)
    line = (
        f"{seed:6d} {'hosts' if hosts else 'forks'} {time.monotonic() - started:5.1f} s {updates:5d} updates  "
        f"longest {longest:5.2f} s (one update {one_update_s(events):.2f} s)  lost {lost!s:12}  {kinds}"
    )
    return found, line, max(stalled_s(events), one_update_s(events))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first; the others follow")
    parser.add_argument("--place", choices=["both", "hosts", "forks"], default="both")
    parser.add_argument("--out", type=Path, default=Path("outputs/chaos-schedules"))
    parser.add_argument("--untimed", action="store_true", help="do not check how soon updates come: a busy machine")
    given = parser.parse_args(arguments)
    without_hosts = hosts_possible()
    if given.place == "hosts" and without_hosts:
        sys.exit(without_hosts)
    torch.set_num_threads(1)
    bad: dict[int, list[str]] = {}
    disturbed = []
    for seed in range(given.first, given.first + given.count):
        hosts = given.place == "hosts" or (given.place == "both" and not without_hosts and seed % 2 == 0)
        for _ in range(_TIMES):
            found, line, stalled = one(seed, given.out / str(seed), hosts=hosts, timed=not given.untimed)
            print(line + (f"  (the machine stalled for {stalled:.2f} s)" if stalled > _STALL_S else ""), flush=True)
            if not found or stalled <= _STALL_S:
                break
        if found and stalled > _STALL_S:
            disturbed.append(seed)
        elif found:
            bad[seed] = found
            print("".join(f"       {sentence}\n" for sentence in found), end="", flush=True)
    print(f"{given.count} schedules, {len(bad)} with violations{': seeds ' + str(sorted(bad)) if bad else ''}")
    if disturbed:
        print(f"not judged, since the machine stalled for longer than {_STALL_S:g} s each time: seeds {disturbed}")
    if without_hosts:
        print(f"no link was cut: {without_hosts}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
