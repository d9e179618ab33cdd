"""The race's figures: each regime's learning curves, and who wins as links get slower beside computing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ...comparison import curves
from ...comparison.find import local_runs
from ...comparison.groups import group
from ...comparison.schemes import known
from ...comparison.style import COLUMN, PLAIN, drawing
from .plan import OURS, Regime, links_of, race_of
from .results import Row, Standing, counting, standings

BESIDE = ("ddp", "k_sync", "powersgd")
_FLOAT32_BYTES = 4


def upload_over_compute(rows: Iterable[Row]) -> float | None:
    """Seconds to send a whole float32 gradient through one link, over a rank's seconds of computing without a code.

    None where links are not shaped: nobody knows their rate.
    """
    rows = [row for row in rows if row["scheme"] == "k_sync" and "compute_s_mean" in row]
    if not rows or (mbit := links_of(rows[0]["links"]).mbit) is None:
        return None
    upload_s = rows[0]["parameters"] * _FLOAT32_BYTES / (mbit * 1e6 / 8)
    return upload_s / statistics.median(row["compute_s_mean"] for row in rows)


def draw(rows: list[Row], out: Path) -> list[str]:
    """Draw all figures into ``out``; returns the names of the files."""
    raced = standings(rows)
    return [
        *(name for regime in raced for name in _draw_curves(regime, rows, out)),
        *_draw_crossovers(raced, rows, out),
    ]


def _draw_curves(regime: Regime, rows: list[Row], out: Path) -> list[str]:
    """The target metric against wall time and against bytes, over the seeds of each scheme."""
    done = [race_of(row) for row in counting(rows) if not row["failed"]]
    runs, _ = local_runs([out / "runs" / race.name for race in done if race.regime == regime])
    if not runs:  # all have failed
        return []
    groups = group(runs, ["scheme"])
    written = []
    for axis in ("wall", "bytes"):
        path = out / f"{regime.label}-{axis}.png"
        if groups and len(curves.draw(path, groups, axis)) < len(groups):
            written.append(path.name)
    return written


def _draw_crossovers(raced: dict[Regime, list[Standing]], rows: list[Row], out: Path) -> list[str]:
    """Speed ratios against how slow links are, where workload and stragglers met two kinds of even links or more."""
    points: dict[Regime, list[tuple[float, dict[str, Standing]]]] = defaultdict(list)
    for regime, found in raced.items():
        x = upload_over_compute(row for row in rows if race_of(row).regime == regime)
        if x is not None and links_of(regime.links).coordinator_mbit is None:
            points[regime._replace(links="crossover")].append((x, {standing.scheme: standing for standing in found}))
    written = []
    for regime, series in points.items():
        if len(series) > 1:
            path = out / f"{regime.label}.png"
            _draw(sorted(series, key=lambda point: point[0]), path)
            written.append(path.name)
    return written


def _draw(series: list[tuple[float, dict[str, Standing]]], path: Path) -> None:
    with drawing(path, 2 * COLUMN, 2.6) as figure:
        panels = figure.subplots(1, len(BESIDE), sharey=True)
        for axes, peer in zip(panels, BESIDE, strict=True):
            for scheme in OURS:
                at = [
                    (x, found[peer].time_s, found[scheme].time_s)
                    for x, found in series
                    if {peer, scheme} <= found.keys()
                ]
                line = [(x, theirs / ours) for x, theirs, ours in at if theirs is not None and ours is not None]
                if line:
                    look = known()[scheme]
                    style = "-" if len(line) > 2 else ""  # between two points nothing was measured
                    axes.plot(*zip(*line, strict=True), style, color=look.colour, marker=look.marker, label=scheme)
            axes.axhline(1, color="0.6", linewidth=0.6)
            axes.set(xscale="log", yscale="log", title=f"against {peer}", xlabel="upload time / compute time")
            axes.xaxis.set_minor_formatter(PLAIN)
            axes.xaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_major_formatter(PLAIN)
        panels[0].set_ylabel("speed ratio, above 1: faster")
        panels[-1].legend()
