"""The race's figure: where which kind of exchange wins, as links get slower beside computing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from experiments.bench.race.plan import OURS, links_of
from experiments.bench.race.results import Row, Standing, standings
from experiments.comparison.style import COLOURS, COLUMN, MARKERS, drawing

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
    """A crossover figure for each workload and straggler model that was raced on two kinds of shaped links or more.

    Returns the names of the files written.
    """
    raced = standings(rows)
    points: dict[tuple[str, str], list[tuple[float, dict[str, Standing]]]] = defaultdict(list)
    for (workload, links, straggler), found in raced.items():
        x = upload_over_compute(
            row for row in rows if (row["workload"], row["links"], row["straggler"]) == (workload, links, straggler)
        )
        if x is not None and links_of(links).coordinator_mbit is None:
            points[workload, straggler].append((x, {standing.scheme: standing for standing in found}))
    written = []
    for (workload, straggler), series in points.items():
        if len(series) > 1:
            path = out / f"crossover-{workload}-{straggler}.png"
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
                    axes.plot(*zip(*line, strict=True), color=COLOURS[scheme], marker=MARKERS[scheme], label=scheme)
            axes.axhline(1, color="0.6", linewidth=0.6)
            axes.set(xscale="log", yscale="log", title=f"against {peer}", xlabel="upload time / compute time")
        panels[0].set_ylabel("speed ratio, above 1: faster")
        panels[-1].legend()
