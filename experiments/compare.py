"""Compare runs: `python -m experiments.compare outputs`, or `lwpd-compare` when installed.

Finished runs below the given directories (or of a W&B project) are grouped by everything in which they differ but the
seed. Printed is a table; beside the first directory are left figures, `runs.csv` and `comparison.html`, which opens
without a network.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .places import refuse_unwritable
from .refusals import in_a_sentence
from .typed_command import beside

if TYPE_CHECKING:
    from .comparison.groups import Group
    from .comparison.run import Run

# Runs that are left out are all counted, and so many named.
_NAMED = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit status 1 and one sentence where there is nothing to compare."""
    options = _parser().parse_intermixed_args(arguments)
    with in_a_sentence(ValueError, ModuleNotFoundError):
        _compare(options, _out(options))


def _out(options: argparse.Namespace) -> Path:
    """Where files go. Raises ValueError where they cannot."""
    if options.out is not None:
        refuse_unwritable(f"--out {options.out}", options.out)
        return Path(options.out)
    out = options.paths[0] / "comparison" if options.paths else Path("comparison")
    if not options.paths or options.paths[0].is_dir():  # a path that is none is refused in its own words
        refuse_unwritable(f"--out, which is {out} where it is left out,", out)
    return out


def _compare(options: argparse.Namespace, out: Path) -> None:
    # matplotlib takes a second to import, and `--help` needs none of it; where it is missing, one sentence says so.
    from .comparison import figures, page, parts, report, table
    from .comparison.baselines import baselines
    from .comparison.groups import group
    from .comparison.labels import unsaid
    from .console import open_console

    if options.report and not options.online:
        raise ValueError("--report writes to W&B: name the project with --online entity/project.")
    if options.report and importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError(
            "--report needs wandb_workspaces, which is not installed: pip install 'lwpd-lightning[report]'"
        )
    runs, left_out = _read(options)
    groups = group(runs, options.group_by.split(",") if options.group_by else None)
    against, unmeasured = baselines(groups, options.baseline)
    rows = table.rows(groups, against, options.x)
    title = _title(runs, groups, against, options.x)
    repeated = [line for one in groups if not one.pooled for line in parts.repeated_seeds(one.label, one.runs)]
    usual = unsaid({tuple(one.values.values()): one.runs[0] for one in groups}, list(groups[0].values))
    unmeasured += table.unrated(rows, options.x)
    remarks = [*_pooled(groups), *repeated, *unmeasured, *parts.remarks(runs), *_unfinished(left_out)]
    if usual is not None:
        remarks.insert(0, usual)

    console = open_console()
    table.show(console, rows, title)
    for remark in remarks:
        console.print(remark, highlight=False, markup=False)
    out.mkdir(parents=True, exist_ok=True)
    table.write_csv(out / "runs.csv", groups)
    pictures, undrawn = figures.draw(out, groups, options.x)
    lines = table.cells(rows)
    page.write(out / "comparison.html", title, lines, table.NOTE, pictures, groups, [*remarks, *undrawn])
    for remark in undrawn:
        console.print(remark, highlight=False, markup=False)
    console.print(
        f"{out}: comparison.html, runs.csv, {', '.join(picture.path.name for picture in pictures)}", soft_wrap=True
    )
    if options.report:
        console.print(report.save(report.build(options.online, title, lines, groups)), soft_wrap=True)


def _title(runs: Sequence[Run], groups: Sequence[Group], against: Mapping[int, Group], axis: str) -> str:
    targets = dict.fromkeys(
        f"{run.metric} {'<=' if run.minimised else '>='} {run.summary['target']['value']:g}" for run in runs
    )
    bases = list(dict.fromkeys(base.label for base in against.values()))
    to = bases[0] if len(bases) == 1 else f"the baseline of the same setting ({len(bases)} of them)"
    measured = f"; ratio of {axis} to {to}" if bases else "; no baseline"
    runs_in, many = f"{len(runs)} run{'s'[: len(runs) != 1]} in", f"{len(groups)} group{'s'[: len(groups) != 1]}"
    return f"{runs_in} {many}; target {', '.join(targets)}{measured}"


def _read(options: argparse.Namespace) -> tuple[list[Run], list[str]]:
    # As in _compare.
    from .comparison.find import local_runs
    from .comparison.wandb_runs import online_runs

    if not options.paths and not options.online:
        raise ValueError(
            "Nothing to compare: name directories that hold runs, such as outputs, or --online entity/project."
        )
    runs, left_out = local_runs(options.paths)
    if options.online:
        if options.online.count("/") != 1:
            raise ValueError(f"--online {options.online} is no project: use entity/project.")
        online, unfinished = online_runs(options.online)
        runs, left_out = runs + online, left_out + unfinished
    if not runs:
        where = " ".join([*map(str, options.paths), *([options.online] if options.online else [])])
        raise ValueError(
            f"No finished run in {where}: train one with {beside('train')}, "
            f"which leaves summary.json when it ends. {' '.join(_unfinished(left_out))}".rstrip()
        )
    return runs, left_out


def _pooled(groups: Sequence[Group]) -> list[str]:
    return [
        f"{one.label} pools runs that differ in {', '.join(one.pooled)}: its spread is not over seeds alone."
        for one in groups
        if one.pooled
    ]


def _unfinished(left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    named = "; ".join(left_out[:_NAMED]) + (f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else "")
    return [f"Left out: {len(left_out)} of the runs: {named}."]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="directory that holds runs, at any depth")
    parser.add_argument(
        "--group-by", metavar="KEY,...", help="keys of summary.json or of the configuration: scheme,code.t"
    )
    parser.add_argument("--x", choices=("wall", "bytes", "updates"), default="wall", help="the cost that is compared")
    parser.add_argument(
        "--baseline", metavar="KEY=VALUE,...", help="such as scheme=ddp; default: ddp, sync, k_sync or k_async"
    )
    parser.add_argument("--online", metavar="ENTITY/PROJECT", help="read a W&B project's runs too")
    parser.add_argument("--report", action="store_true", help="with --online: make a W&B Report")
    parser.add_argument("--out", type=Path, help="where files go; default: comparison/ in the first PATH")
    return parser


if __name__ == "__main__":
    main()
