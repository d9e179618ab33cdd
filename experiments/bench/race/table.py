"""The race's tables."""

from __future__ import annotations

import math

from rich.table import Table

from .grids import shown
from .plan import OURS, RANKS, Regime, grid_of
from .results import Standing

COLUMNS = ("scheme", "time to target", "x best peer", "updates", "ms/update", "bound", "KB/rank", "tuned to")


def table(regime: Regime, standings: list[Standing]) -> Table:
    """One regime's schemes, fastest first; ours in bold."""
    title = f"{regime.workload}, {regime.links} links, stragglers: {regime.straggler}"
    title += f", {regime.ranks} ranks" if regime.ranks != RANKS else ""
    drawn = Table(title=title, title_justify="left", caption=_CAPTION, caption_justify="left")
    for name in COLUMNS:
        drawn.add_column(name, justify="left" if name in ("scheme", "tuned to") else "right", no_wrap=True)
    for s in standings:
        style = "bold" if s.scheme in OURS else ""
        drawn.add_row(s.scheme, *cells(regime.workload, s), style=style)
    return drawn


_CAPTION = (
    "Seconds from the first update to the target: median over seeds (least..greatest); above 1 x best peer is faster "
    "than every peer. bound: share of an update's time that computing on these cores, or the busiest link, explains. "
    "KB/rank: sent through a host's interface an update, the mean over hosts."
)


def cells(workload: str, s: Standing) -> list[str]:
    """A standing's figures as text, in the table's order."""
    missed = f"not reached ({s.reached} of {s.runs})"
    spread = "" if s.spread_s is None or s.runs == 1 else f" ({s.spread_s[0]:.1f}..{s.spread_s[1]:.1f})"
    return [
        missed if s.time_s is None else f"{s.time_s:.1f}{spread} s",
        "" if s.ratio is None else f"{s.ratio:.2f}",
        "" if math.isnan(s.updates) else f"{s.updates:.0f}",
        "" if math.isnan(s.update_s) else f"{1000 * s.update_s:.0f}",
        "" if math.isnan(s.bound_s) else f"{s.bound_share:.0%}",
        "" if s.kilobytes is None else f"{s.kilobytes:.0f}",
        shown(grid_of(workload, s.scheme)[s.point]),
    ]


def markdown(regime: Regime, standings: list[Standing]) -> str:
    """The same for a README."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|---:|---:|---|"]
    lines += [f"| {s.scheme} | {' | '.join(cells(regime.workload, s))} |" for s in standings]
    return "\n".join(lines)
