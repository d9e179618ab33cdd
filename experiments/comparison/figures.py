"""All figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import curves, timeline, workers
from .groups import Group
from .page import Picture
from .run import AXES

DRAWN = 10  # more lines than that nobody tells apart
_SPENT = {"wall": "wall time", "bytes": "bytes over all links", "updates": "updates"}


def draw(out: Path, groups: Sequence[Group], axis: str) -> tuple[list[Picture], list[str]]:
    """Draw into `out`, the compared `axis` first; returns the figures and a line for each thing that is not drawn."""
    pictures, remarks = [], []
    for metric in dict.fromkeys(one.metric for one in groups):
        of_metric = [one for one in groups if one.metric == metric]
        if len(of_metric) > DRAWN:
            remarks.append(
                f"Figures show the first {DRAWN} of {len(of_metric)} groups: fewer keys in --group-by draw all."
            )
            of_metric = of_metric[:DRAWN]
        for spent in sorted(AXES, key=lambda one: one != axis):
            path = out / f"{metric}_against_{spent}.png"
            left_out = curves.draw(path, of_metric, spent)
            if left_out:
                remarks.append(f"{metric} against {_SPENT[spent]}: not logged by {', '.join(left_out)}.")
            if len(left_out) < len(of_metric):
                caption = f"{metric} against {_SPENT[spent]}, at each validation: {curves.statistic(of_metric)}."
                pictures.append(Picture(path, caption))
    monitored = workers.monitored(groups)[:DRAWN]
    if monitored:
        workers.draw(out / "workers.png", monitored)
        caption = "Share of updates in which each worker's codeword counted, and its mean staleness where it did: "
        pictures.append(Picture(out / "workers.png", caption + "medians over runs, bars from lowest to highest."))
        left_out = timeline.draw(out / "arrivals.png", groups)
        if left_out:
            remarks.append(f"The arrivals timeline leaves out {', '.join(left_out)}.")
        caption = "Arrivals by update and worker in one run of each group, the one with the median time of an update."
        pictures.append(Picture(out / "arrivals.png", caption))
    return pictures, remarks
