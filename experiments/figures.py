"""Two pictures of one run, drawn from its metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Metric -> (update, value) wherever it was logged.
Series = Mapping[str, list[tuple[int, float]]]
_MAX_COLUMNS = 200


def read_series(metrics: Path) -> Series:
    """All that a CSVLogger wrote, by metric; NaN and empty cells are left out, an absent file holds nothing."""
    series: dict[str, list[tuple[int, float]]] = {}
    if not metrics.is_file():
        return series
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and name != "step" and not math.isnan(value := float(cell)):
                    series.setdefault(name, []).append((int(row["step"]), value))
    return series


def learning_curve(series: Series, target: Mapping[str, Any], path: Path) -> Path | None:
    """Draw training loss and target metric against updates into `path`; None where neither was logged."""
    panels = [(name, series[name]) for name in (target["metric"], "exchange/loss", "train_loss") if name in series][:2]
    if not panels:
        return None
    figure = Figure(figsize=(6, 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, points) in zip(axes, panels, strict=True):
        axis.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 50 else None)
        axis.set_ylabel(name)
        if name == target["metric"]:
            axis.axhline(target["value"], color="gray", linestyle="--", linewidth=0.8)
    axes[-1].set_xlabel("updates")
    return _saved(figure, path)


def arrivals(series: Series, path: Path) -> Path | None:
    """Draw how often each worker's codeword was among the K of an update; None for a scheme without arrivals."""
    prefix = "exchange/arrived/"
    workers = sorted(int(name.removeprefix(prefix)) for name in series if name.startswith(prefix))
    if not workers:
        return None
    rows = [[value for _, value in series[f"{prefix}{worker}"]] for worker in workers]
    width = math.ceil(len(rows[0]) / _MAX_COLUMNS)
    shares = [[_mean(row[start : start + width]) for start in range(0, len(row), width)] for row in rows]
    first, last = series[f"{prefix}{workers[0]}"][0][0], series[f"{prefix}{workers[0]}"][-1][0]
    figure = Figure(figsize=(6, 1.5 + 0.15 * len(workers)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        shares, aspect="auto", interpolation="nearest", vmin=0, vmax=1, cmap="viridis",
        extent=(first - 0.5, last + 0.5, len(workers) - 0.5, -0.5),
    )  # fmt: skip
    axis.set_xlabel("updates")
    axis.set_ylabel("worker")
    axis.set_title("share of updates that a worker's codeword is in", fontsize="medium")
    figure.colorbar(image)
    return _saved(figure, path)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _saved(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(str(path))
    return path
