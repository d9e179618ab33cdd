"""A picture of a code: its generator with data parts and blocks marked, and what K arrivals are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lwpd_lightning import Code

from .code_facts import MAX_SETS, Arrivals, recovery, size, tolerance

_INK, _MUTED, _BLUE, _ORANGE = "#222222", "#8a8a8a", "#2166ac", "#d6604d"  # the ends of the matrix' colours
_TICKS = 16  # workers or tasks that get a label each


def draw(code: Code, wait_for: int | None, path: Path) -> None:
    """Write the picture of `code` as a PNG file; `wait_for` is K, marked in the recovery profile."""
    worth = recovery(code, MAX_SETS)
    figure = Figure(figsize=(10.5, 5.6), layout="constrained", dpi=200)
    matrix, right = figure.subfigures(1, 2, width_ratios=[1.3, 1], wspace=0.03)
    shares, errors = right.subplots(2, 1, sharex=True)
    _generator(matrix.subplots(), code)
    _shares(shares, worth, wait_for)
    _errors(errors, worth, wait_for)
    enough = tolerance(code, worth)
    figure.suptitle(
        f"{code.family} code: n={code.n} workers, k={code.k} tasks "
        f"({size(code)}), weight t={code.t}\n"
        f"The exact gradient can be had from {enough or 'no number of'} codewords",
        fontsize=11,
        color=_INK,
    )
    figure.savefig(path, format="png", metadata={"Software": None})


def _generator(axes: Axes, code: Code) -> None:
    entries = code.generator.numpy()
    # Rounded, since equal coefficients differ in their last bits; room beyond, where the colours turn dark.
    values = np.unique(entries.round(6))
    limit = 1.25 * float(np.abs(entries).max())
    image = axes.imshow(entries, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    for part in range(1, code.data_parts if code.blocks > 1 else 1):
        axes.axvline(part * code.blocks - 0.5, color=_INK, linewidth=1.2 if code.data_parts <= _TICKS else 0.5)
    if code.k <= 2 * _TICKS and code.n <= 2 * _TICKS:  # cells large enough for a grid
        axes.set_xticks(np.arange(code.k - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(code.n - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0, labelsize=8, colors=_INK)
    turns = len(code.cycle)
    axes.set_ylabel("worker" if turns == 1 else f"worker (the first of {turns} generators that take turns)")
    axes.yaxis.set_major_locator(MaxNLocator(_TICKS, integer=True))
    if code.n <= _TICKS:
        axes.set_yticks(range(code.n))
    if code.blocks > 1 and code.k <= 2 * _TICKS:
        axes.set_xticks(range(code.k), [str(j % code.blocks) for j in range(code.k)])
        axes.set_xlabel("block, within each data part")
    else:
        axes.set_xticks([])
        axes.set_xlabel(
            f"{code.blocks} blocks within each data part" if code.blocks > 1 else "one block: the whole gradient"
        )
    top = axes.secondary_xaxis("top")
    step = -(-code.data_parts // _TICKS)
    shown = range(0, code.data_parts, step)
    label = "part {}" if code.data_parts <= 8 else "{}"
    top.set_xticks([(part + 0.5) * code.blocks - 0.5 for part in shown], [label.format(part) for part in shown])
    top.tick_params(length=0, labelsize=8, colors=_INK)
    top.set_xlabel("data part" if code.data_parts > 8 else "")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    if len(values) <= 7:
        bar.set_ticks(list(values), labels=[f"{value:+.3g}" if value else "0" for value in values])
    bar.set_label("coefficient", color=_INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, colors=_INK)


def _shares(axes: Axes, worth: Sequence[Arrivals], wait_for: int | None) -> None:
    axes.plot([at.count for at in worth], [at.share for at in worth], color=_BLUE, linewidth=1.5, zorder=2)
    for tried, face, name in ((True, _BLUE, "all sets tried"), (False, "white", "a sample of sets")):
        points = [(at.count, at.share) for at in worth if at.all_tried is tried]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=_BLUE, markerfacecolor=face, markersize=4.5, label=name)
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.set_ylabel("arrival sets with\nthe exact gradient", fontsize=9)
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _plain(axes, wait_for)
    if wait_for is not None:
        at = (wait_for, 1.02)
        axes.annotate(f"K={wait_for}", at, xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=_MUTED)


def _errors(axes: Axes, worth: Sequence[Arrivals], wait_for: int | None) -> None:
    points = [(at.count, at.error) for at in worth if at.error is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=_ORANGE, linewidth=1.5, markersize=3.5)
    else:
        # In front of the line that marks K.
        white = {"facecolor": "white", "edgecolor": "none"}
        text = "no tight frame:\nno projective decoder"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, color=_MUTED, bbox=white, zorder=3)
    # Above 1 it is worse than no step at all; only where it never falls below, more is shown.
    axes.set_ylim(-0.04, max(1.04, 1.5 * (worth[-1].error or 0)))
    axes.set_xlim(0.5, len(worth) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("codewords that arrived", fontsize=9)
    axes.set_ylabel("projective decoder:\nexpected squared error", fontsize=9)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _plain(axes, wait_for)


def _plain(axes: Axes, wait_for: int | None) -> None:
    if wait_for is not None:
        axes.axvline(wait_for, color=_MUTED, linewidth=1, linestyle="--", zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
