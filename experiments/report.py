"""The table at the end of a run: what the code bought and what it cost, from the run's own figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lwpd_lightning import Code

from .code_facts import exactness, recovery, worker_loads
from .job_label import labelled


def show(summary: dict[str, Any], code: Code | None, directory: Path) -> None:
    """Print the table of `summary`, a document that `experiments.summary.summarise` made."""
    table = Table(title=escape(labelled(_title(summary))), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows(summary, code):
        table.add_row(name, text)
    console = Console()
    console.print(table)
    # Beside the table, whose cells are cut over several lines, so that it can be copied.
    console.print(labelled(f"files: {directory}"), soft_wrap=True, highlight=False, markup=False)


def rows(summary: dict[str, Any], code: Code | None) -> list[tuple[str, str]]:
    """(name, text) of each line; a figure that the run did not measure has none."""
    lines = [("result", _result(summary)), ("time", _time(summary))]
    went_on = summary.get("resumed_at_update")
    since = f" (since update {went_on}, where it went on)" if went_on else ""
    if code is not None:
        lines.append(("any arrivals", _arrivals(code, summary["wait_for"])))
    if summary["bytes_up"] is not None:
        lines += [
            ("upload", _upload(summary)),
            (
                "whole run",
                f"{readable_bytes(summary['bytes_up'])} up, {readable_bytes(summary['bytes_down'])} down, "
                "all workers together",
            ),
            ("waiting", _waiting(summary) + since),
        ]
        if summary["inclusion_rate"]:  # empty where a finished run went on, with no update left
            lines += [
                ("staleness", _staleness(summary) + since),
                ("inclusion rate", _inclusion(summary["inclusion_rate"]) + since),
                ("lost workers", _failures(summary["failures"], summary.get("kills_to_come") or [])),
            ]
    if code is not None:
        lines.append(("cost", compute_cost(code)))
    return lines


def _title(summary: dict[str, Any]) -> str:
    code = summary["code"]
    if code is None:
        return f"what it took: scheme {summary['scheme']}, {summary['world_size']} ranks, no code"
    return (
        f"what the code bought: scheme {summary['scheme']}, n={code['n']} k={code['k']} t={code['t']} "
        f"(A={code['A']} data parts, B={code['B']} blocks), K={summary['wait_for']}"
    )


def _result(summary: dict[str, Any]) -> str:
    metric, value = summary["target"]["metric"], summary["target"]["value"]
    reached = summary["time_to_target_s"]
    target = f"not reached: {value}" if reached is None else f"{value} first reached after {reached:.1f} s"
    measured = "not measured" if summary.get(metric) is None else f"{summary[metric]:.4f}"
    return f"{metric} {measured} after {summary['updates']} updates (target {target})"


def _time(summary: dict[str, Any]) -> str:
    whole, startup = summary["wall_s"], summary["startup_s"]
    parts = {
        "imports": summary.get("imports_s"),
        "data and model": summary.get("assembly_s"),
        "the workers' start-up": startup,
        "training": None if startup is None else summary["fit_s"] - startup,
        "judging the model": summary.get("judging_s"),
    }
    known = {name: seconds for name, seconds in parts.items() if seconds is not None}
    known["training and the rest" if startup is None else "the rest"] = max(0.0, whole - sum(known.values()))
    return f"{whole:.1f} s in all: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in known.items())


def _arrivals(code: Code, wait_for: int | str | None) -> str:
    worth = recovery(code)
    text = f"the exact gradient can be had {exactness(code, worth)}"
    if isinstance(wait_for, int) and 0 < (share := worth[wait_for - 1].share) < 1:
        text += f", and from {share:.0%} of the sets of K={wait_for}"
    return text


def _upload(summary: dict[str, Any]) -> str:
    sent, gradient = summary["bytes_up_per_update_per_worker"], summary["gradient_bytes"]
    what = "a worker and update" if summary["code"] is None else "a codeword"
    return f"{readable_bytes(sent)} {what}, {sent / gradient:.0%} of the whole gradient ({readable_bytes(gradient)})"


def _waiting(summary: dict[str, Any]) -> str:
    awaited = summary["arrivals_mean"]
    whom = "all ranks' gradients" if awaited is None else f"{awaited:.1f} codewords on average"
    return (
        f"{1000 * summary['wait_s_mean']:.1f} ms an update for {whom}, "
        f"beside {1000 * summary['compute_s_mean']:.1f} ms of a worker's own computing"
    )


def _staleness(summary: dict[str, Any]) -> str:
    return (
        f"{summary['late_codewords']} late codewords counted, {summary['dropped_codewords']} dropped; "
        f"mean {summary['staleness_mean']:.2f}, highest {summary['staleness_max']} updates"
    )


def _inclusion(rates: list[float]) -> str:
    lowest, highest = min(rates), max(rates)
    return f"lowest {lowest:.2f} (worker {rates.index(lowest)}), highest {highest:.2f} (worker {rates.index(highest)})"


def _failures(failures: list[dict[str, Any]], to_come: list[dict[str, Any]]) -> str:
    lost = [f"worker {lost['worker']} after update {lost['update']} ({lost['reason']})" for lost in failures] or [
        "none"
    ]
    spared = [f"worker {one['worker']} was to be killed at update {one['update']}, which never came" for one in to_come]
    return "; ".join(lost + spared)


def compute_cost(code: Code) -> str:
    """What redundancy costs: the share of the batch that a worker computes, and the sum over all workers."""
    loads = worker_loads(code)
    extent = f"{min(loads):.0%}" if min(loads) == max(loads) else f"{min(loads):.0%} to {max(loads):.0%}"
    batches = "1 batch" if math.isclose(sum(loads), 1) else f"{sum(loads):.3g} batches"
    return f"each worker computes {extent} of every batch, all together {batches} an update"


def readable_bytes(count: float) -> str:
    """A number of bytes with three digits and a decimal unit.

    >>> readable_bytes(172_032)
    '172 kB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
