"""Race every scheme to a target on shaped links: ``python -m experiments.bench.race`` (root, Linux, iproute2).

First each scheme is tuned in each regime on a seed of its own, over the same small grid; then it is raced at its best
point. A scheme that waits for all ranks makes the same updates wherever it runs: it is tuned once, on unshaped links.
What has been run is kept: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ...refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    import hydra  # noqa: F401 - of what follows; rich comes with other things too
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...console import open_console
from .plan import (
    QUICK,
    RANKS,
    SCHEMES,
    STRAGGLERS,
    WORKLOADS,
    Race,
    Regime,
    alone,
    links_of,
    races,
    tuning,
)
from .testbed import refuse_missing_tools


def main() -> None:
    """Tune, race, print and write the tables and figures."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # no host and no rank is left behind
    regimes = [_regime(options.workload, regime, options.ranks) for regime in options.regimes]
    try:
        shaped = [regime for regime in regimes if links_of(regime.links).mbit is not None]
        if shaped:
            refuse_missing_tools()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    # Imported here, once, for all ranks of all races.
    from ... import job, report  # noqa: F401
    from .figures import draw
    from .results import Results, standings
    from .table import markdown

    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "results.jsonl")
    _race(alone(regimes, options.seeds), results, options.out)
    wanted = [(regime, scheme) for regime in regimes for scheme in options.schemes]
    if options.quick:
        points = {(regime, scheme): QUICK[scheme] for regime, scheme in wanted}
    elif options.point is not None:
        points = dict.fromkeys(wanted, options.point)
    else:
        _race(tuning(regimes, options.schemes), results, options.out)
        tuned = results.tuned()
        points = {(regime, scheme): tuned[regime.race(scheme, 0, 0).tuned_in, scheme] for regime, scheme in wanted}
    _race(races(points, options.seeds), results, options.out)
    found = standings(results.rows)
    (options.out / "tables.md").write_text(
        "\n\n".join(f"**{' / '.join(map(str, regime))}**\n\n{markdown(regime, rows)}" for regime, rows in found.items())
        + "\n"
    )
    _write_csv(results.rows, options.out / "results.csv")
    drawn = draw(results.rows, options.out)
    open_console().print(
        f"\nTables: {options.out}/tables.md; rows: results.csv, results.jsonl; figures: {', '.join(drawn)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="mlp")
    parser.add_argument(
        "--regimes", nargs="+", metavar="LINKS/STRAGGLER", default=["unshaped/none", "even/none", "even/slow_tail"]
    )
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=RANKS, help="workers and hosts: a multiple of 4")
    parser.add_argument("--point", type=int, help="race at this point of the grid, without tuning")
    parser.add_argument("--out", type=Path, default=Path("outputs/race"))
    parser.add_argument("--quick", action="store_true", help="four schemes in one regime, one seed, tuned before")
    options = parser.parse_args()
    if options.quick:
        options.workload, options.regimes, options.seeds = "mlp", ["even/none"], [0]
        options.schemes, options.ranks = list(QUICK), RANKS
    return options


def _regime(workload: str, text: str, ranks: int) -> Regime:
    links, _, straggler = text.partition("/")
    if straggler not in STRAGGLERS:
        sys.exit(f"--regimes {text}: use links, a slash and one of {', '.join(STRAGGLERS)}, such as even/slow_tail.")
    return Regime(workload, links, straggler, ranks)


def _race(planned: list[Race], results: object, out: Path) -> None:
    # After what a wrong command line is told, as all that takes seconds to import.
    from .ranks import run
    from .results import Results, standings
    from .table import table

    assert isinstance(results, Results)
    left = [race for race in planned if not results.has(race)]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    task = progress.add_task("", total=len(planned), completed=len(planned) - len(left))

    def tables() -> list[object]:
        return [table(regime, rows) for regime, rows in standings(results.rows).items()]

    with Live(Group(*tables(), progress), console=open_console()) as live:  # type: ignore[arg-type]
        for race in left:
            progress.update(task, description=race.name)
            directory = out / "runs" / race.name
            shutil.rmtree(directory, ignore_errors=True)  # of a race that was interrupted
            row = run(race, directory, results.limit_s(race))
            results.add(row)
            progress.advance(task)
            if row["failed"] or not live.console.is_terminal:  # a pipe shows the tables at the end only
                reached = f"{row['time_to_target_s']:.1f} s" if row["reached"] else "target not reached"
                live.console.print(f"{race.name}: {row['failed'] or reached}", soft_wrap=True)
            live.update(Group(*tables(), progress))  # type: ignore[arg-type]


def _write_csv(rows: list[dict[str, object]], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
