"""The way of two updates: who computes when, what is decided, what travels. A sketch: no times were measured."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .page import INK, MUTED, PALE, svg

_COMPUTE, _LATE, _SUM, _STEP = "#2b7bba", "#e08214", "#3f9b62", "#222222"
# Four workers, K = 3: when each is ready, from the start of either update. The last takes both for one codeword.
_READY = ((3.0, 3.2), (3.6, 2.9), (2.7, 3.5), (None, None))
_DECIDED, _ENDS = (3.6, 8.6), (0.0, 5.1, 10.1)  # of the updates


def draw(path: Path) -> None:
    """Draw four workers through two updates."""
    with svg(path, 9.2, 3.5) as figure:
        axes = figure.subplots()
        for worker, ready in enumerate(_READY):
            _worker(axes, worker, ready)
        for update in (0, 1):
            decided = _DECIDED[update]
            axes.plot([decided, decided], [-0.55, 3.55], color=INK, linewidth=1, linestyle=(0, (3, 2)))
            axes.annotate(
                "three are ready:\nrank 0 decides who counts", (decided, -0.6), ha="center", va="bottom", fontsize=8.5,
                annotation_clip=False,
            )  # fmt: skip
            axes.text((_ENDS[update] + decided) / 2, 3.75, f"update {update + 1}", ha="center", va="top", color=MUTED)
        axes.set_yticks(range(4), ["worker 0\n(rank 0)", "worker 1", "worker 2", "worker 3"])
        axes.tick_params(length=0)
        axes.set_ylim(3.9, -0.9)
        axes.set_xlim(-0.1, 10.3)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel("time", loc="right")
        handles = [
            Patch(facecolor=_COMPUTE, label="computes its codeword"),
            Patch(facecolor=PALE, label="waits"),
            Patch(facecolor=_SUM, label="adds a slice up, sends the sum to all"),
            Patch(facecolor=_STEP, label="optimizer's step"),
            Patch(facecolor=_LATE, label="still computes: will count in the next update"),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5, handlelength=1.2,
            columnspacing=1.2,
        )  # fmt: skip


def _worker(axes: Axes, worker: int, ready: tuple[float | None, float | None]) -> None:
    for update, (start, decided, end) in enumerate(zip(_ENDS, _DECIDED, _ENDS[1:], strict=False)):
        at = ready[update]
        if at is not None:
            _bar(axes, worker, start, start + at, _COMPUTE)
            _bar(axes, worker, start + at, decided, PALE)
        elif update == 0:
            _bar(axes, worker, start, decided, _COMPUTE)
            _bar(axes, worker, decided, _DECIDED[1], _LATE)
            continue
        _bar(axes, worker, decided, end - 0.35, _SUM)
        _bar(axes, worker, end - 0.3, end - 0.05, _STEP)


def _bar(axes: Axes, worker: int, start: float, end: float, colour: str) -> None:
    if end > start:
        axes.barh(worker, end - start - 0.03, left=start, height=0.5, color=colour, linewidth=0)
