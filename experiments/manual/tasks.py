"""What a code is, in one picture: a batch in parts, a gradient in blocks, and who computes which of the squares."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lwpd_lightning import Code

from .page import INK, MUTED, svg

_COLOURS = ("#2b7bba", "#e08214", "#3f9b62", "#8e5ea8")  # of tasks


def draw(code: Code, path: Path) -> None:
    """Draw `code`, which has at most four tasks."""
    with svg(path, 9.2, 4.1) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
        for axes in (left, right):
            axes.axis("off")
        _cut(left, code)
        _rows(right, code)


def _cut(axes: Axes, code: Code) -> None:
    """The squares: a column for each part of the batch, a row for each block of the gradient."""
    axes.set_title("1. The gradient of a batch is cut into tasks", loc="left")
    for part in range(code.data_parts):
        axes.text(part + 0.5, -0.12, f"part {part}\nof the batch", ha="center", va="bottom", fontsize=8.5)
        for block in range(code.blocks):
            _square(axes, part, block, 1, 1, part * code.blocks + block, f"task {part * code.blocks + block}", 10)
    for block in range(code.blocks):
        axes.text(-0.08, block + 0.5, f"block {block}\nof the\ngradient", ha="right", va="center", fontsize=8.5)
    axes.text(
        code.data_parts / 2, code.blocks + 0.1,
        "A task is the gradient of one part in one block.\n"
        "Adding a block's tasks up over the parts (along a row)\ngives the whole batch's gradient in that block.",
        ha="center", va="top", fontsize=8.5, color=MUTED,
    )  # fmt: skip
    axes.set_xlim(-0.75, code.data_parts + 0.1)
    axes.set_ylim(code.blocks + 0.95, -0.6)


def _rows(axes: Axes, code: Code) -> None:
    """A line for each worker: what it mixes, and how long what it sends is."""
    axes.set_title("2. Each worker mixes some of them into one codeword", loc="left")
    for worker in range(code.n):
        axes.text(-0.2, worker + 0.5, f"worker {worker}", ha="right", va="center", fontsize=8.5)
        for turn, task in enumerate(code.tasks(worker)):
            number = task.data_part * code.blocks + task.block
            sign = "+" if task.coefficient > 0 else "\N{MINUS SIGN}"
            axes.text(2.1 * turn + 0.14, worker + 0.5, sign, ha="center", va="center", fontsize=10)
            _square(axes, 2.1 * turn + 0.3, worker + 0.12, 1.5, 0.76, number, f"task {number}", 8)
        parts = ", ".join(str(part) for part in code.parts(worker))
        name = "part" if len(code.parts(worker)) == 1 else "parts"
        axes.text(2.1 * code.t + 0.25, worker + 0.5, f"reads {name} {parts}", va="center", fontsize=8.5, color=MUTED)
    share = f"1/{code.blocks}" if code.blocks > 1 else "all"
    axes.text(
        0, code.n + 0.25, f"It sends the mixture only: one block's length, {share} of a gradient.", va="top",
        fontsize=8.5, color=INK,
    )  # fmt: skip
    axes.set_xlim(-1.7, 2.1 * code.t + 2.4)
    axes.set_ylim(code.n + 0.9, -0.1)


def _square(axes: Axes, x: float, y: float, width: float, height: float, task: int, text: str, size: float) -> None:
    colour = _COLOURS[task]
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color="white", fontsize=size)
