"""Train while faults befall the run: `python -m experiments.chaos [--minutes 10] [--faults-per-hour 240] [--seed 0]`.

Faults are SIGKILL, SIGSTOP and SIGCONT, links cut between two workers or in one direction, a worker cut off from all or
from all but rank 0, a link throttled to 1 Mbit/s, strangers at rank 0's ports, and NaN gradients; never more than n - K
at a time. Without root and iproute2 links cannot be cut, and rank 0 forks its workers. The same training runs without
faults for as long; both leave an event log (`experiments.chaos.log`), from which goodput and recovery times are
derived, and a timeline. Ends with 1 where a healthy worker was lost, an update is missing, or a run hangs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401 - for all ranks
import torch

from .checks import stalled_s, violations
from .figures import draw, table
from .job import Settings
from .log import read
from .run import run
from .schedule import KINDS, SIGNALS, Fault, schedule
from .schedules import hosts_possible

_STARTING_S, _RETURNING_S = 60.0, 120.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with faults and without, and print what both came to."""
    parser = argparse.ArgumentParser(prog="python -m experiments.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="in which faults begin")
    parser.add_argument("--faults-per-hour", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--workers", type=int, default=8, help="n, rank 0's own included")
    parser.add_argument("--wait-for", type=int, default=6, help="K")
    parser.add_argument("--heartbeat", type=float, default=5.0, help="heartbeat_s")
    parser.add_argument("--compute-ms", type=float, default=50.0, help="that a codeword takes, slept")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of faults; by default all that can be")
    parser.add_argument("--forks", action="store_true", help="rank 0 forks its workers: signals, strangers and NaN")
    parser.add_argument("--only-faults", action="store_true", help="without the same run without faults")
    parser.add_argument("--out", type=Path, default=Path("outputs/chaos"))
    given = parser.parse_args(arguments)
    without_hosts = "rank 0 forks its workers" if given.forks else hosts_possible()
    kinds = given.kinds or (SIGNALS if without_hosts else KINDS)
    if without_hosts and not set(kinds) <= set(SIGNALS):
        sys.exit(f"--kinds {' '.join(kinds)}: no link can be cut: {without_hosts}")
    torch.set_num_threads(1)
    seconds = 60.0 * given.minutes
    count = max(1, round(given.faults_per_hour * given.minutes / 60))
    settings = Settings(
        given.workers, given.wait_for, given.heartbeat, given.compute_ms / 1000, None, hosts=not without_hosts
    )
    faults = schedule(given.seed, given.workers, given.workers - given.wait_for, seconds, count, kinds)
    limit_s = _STARTING_S + _RETURNING_S + 2 * seconds

    def trained(name: str, faults: list[Fault]) -> Path:
        print(f"{name}: {len(faults)} faults in {given.minutes:g} minutes or a little more", flush=True)
        return run(settings, faults, given.out / name, seed=given.seed, seconds=seconds, limit_s=limit_s)

    calm = None if given.only_faults else read(trained("without", []))
    log = trained("with", faults)
    events = read(log)
    draw(events, given.out / "timeline.png")
    print(table(events, calm))
    if without_hosts:
        print(f"no link was cut: {without_hosts}")
    found = violations(events, timed=False)
    if stalled := stalled_s(events):
        print(f"the machine did not run the command itself for up to {stalled:.2f} s: times are as good as that")
    print("".join(f"VIOLATION  {sentence}\n" for sentence in found), end="")
    print(f"files      {log}, {given.out / 'timeline.png'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
