"""A run that continues another from its checkpoint is one run with it: one seed, one log, one cost to the target."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .run import Run
from .series import Series, Wanted


def join(runs: Sequence[Run], logs: Sequence[Run]) -> list[Run]:
    """Runs with the logs of what they continue, which is then no run of its own; `logs` are of runs that were killed.

    Parts know each other by the directory in which they ran, so runs may have been moved since.
    """
    known = {_ran_in(run): run for run in [*logs, *runs]}
    whole = [_whole(run, known) for run in runs]
    continued = {source for run in whole for source in run.parts}
    return [run for run in whole if run.source not in continued]


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know of continued runs: which were joined, and what of them is not known."""
    said = []
    for run in runs:
        if run.parts:
            said.append(f"One run: {' and '.join([*run.parts, run.source])}, which continues it.")
        if run.lost is not None:
            said.append(f"{run.source} continues {run.lost}, whose log is not here: its curves begin in the middle.")
        if not run.timed:
            said.append(f"{run.source} has no time: its checkpoint does not tell the seconds before it.")
    return said


def repeated_seeds(label: str, runs: Sequence[Run]) -> list[str]:
    """A line for each seed that a group's runs have twice, which are no two samples of the spread over seeds."""
    sources: dict[str, list[str]] = {}
    for run in runs:
        sources.setdefault(str(run.get("seed")), []).append(run.source)
    return [
        f"{label} has seed {seed} {len(same)} times ({', '.join(same)}): its spread is not over seeds alone."
        for seed, same in sources.items()
        if len(same) > 1
    ]


def _ran_in(run: Run) -> str:
    directory = run.get("paths.run_dir")
    return os.path.realpath(directory if isinstance(directory, str) else run.source)


def _whole(run: Run, known: Mapping[str, Run]) -> Run:
    chain = [run]
    lost = None
    while (origin := chain[0].resumed_from) is not None:
        earlier = known.get(os.path.realpath(origin))
        # A run that went on in its own directory has written over its first log.
        if earlier is None or earlier in chain:
            lost = origin
            break
        chain.insert(0, earlier)
    if len(chain) == 1 and lost is None:
        return run
    before = chain[0].summary.get("resumed_at_bytes") if lost is not None else 0.0
    return replace(
        run,
        read=lambda wanted: _read(chain, wanted),
        parts=tuple(part.source for part in chain[:-1]),
        lost=lost,
        bytes_before=math.nan if before is None else float(before),
    )


def _read(chain: Sequence[Run], wanted: Wanted) -> Series:
    """The parts' rows one after the other, each up to the update at which the next one begins."""
    logs = [part.read(lambda name: name in ("step", "exchange/update_s") or wanted(name)) for part in chain]
    ends = [_began(part, log) for part, log in zip(chain[1:], logs[1:], strict=True)]
    names = {name for log in logs for name in log if wanted(name)}
    rows = [_until(log, end) for log, end in zip(logs, [*ends, math.inf], strict=True)]
    return {
        name: np.concatenate(
            [log.get(name, np.full(count, np.nan))[:count] for log, count in zip(logs, rows, strict=True)]
        )
        for name in names
    }


def _began(part: Run, log: Series) -> float:
    """Updates before its first one; of a part that was killed only its log can tell."""
    told = part.summary.get("resumed_at_update")
    if told is not None:
        return float(told)
    steps = log.get("step", np.empty(0))[~np.isnan(log.get("exchange/update_s", np.empty(0)))]
    return float(steps[0]) - 1.0 if steps.size else math.inf


def _until(log: Series, end: float) -> int:
    steps = log.get("step", np.empty(0))
    later = np.flatnonzero(steps > end)
    return int(later[0]) if later.size else len(steps)
