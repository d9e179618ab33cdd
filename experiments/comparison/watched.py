"""Runs as they are now, finished or not: a table, who was lost and why, and pictures of what has been logged."""

from __future__ import annotations

import html
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..identity import is_gone
from . import curves, timeline
from .find import configuration, mapping, run_directories
from .groups import Group
from .page import Picture, document, figure, table_of
from .run import Run
from .series import Column, read_metrics
from .style import COLUMN, drawing, legend, legend_height, looks
from .table import bytes_unit
from .wandb_runs import promised

DRAWN = 6  # runs, the newest
_RECENT = 50  # updates of which the table's medians are
_SILENT_S = 30.0
HEADER = ["run", "seed", "state", "updates", "loss", "metric", "an update", "waits", "computes", "bytes", "workers"]


@dataclass(frozen=True)
class Watched:
    """One run.

    Attributes:
        group: it alone, as figures take it.
        live: `experiments.live`'s last word; empty of a run that left none.
        state: in words.
    """

    group: Group
    live: dict[str, Any]
    state: str

    def column(self, *names: str) -> Column:
        """The first of the series that was logged, without rows of other things; empty where none was."""
        series = self.group.runs[0].read(lambda name: name in names)
        found = next((series[name] for name in names if name in series), np.empty(0))
        return found[~np.isnan(found)]

    @cached_property
    def lost(self) -> list[str]:
        """A line for each worker that was lost, and why."""
        return [
            f"{self.group.label}: worker {loss['worker']} after update {loss['update']} ({loss['reason']})"
            for loss in self.group.runs[0].summary.get("failures") or []
        ]

    @cached_property
    def line(self) -> list[str]:
        """Cells of the table, by `HEADER`."""
        run, live = self.group.runs[0], self.live
        loss, metric = self.column("exchange/loss", "train_loss"), self.column(run.metric)
        traffic = sum(float(self.column(f"exchange/bytes_{way}").sum()) for way in ("up", "down"))
        scale, unit = bytes_unit(traffic)
        part = "\nsince it went on" if run.resumed_from is not None else ""  # the log is of this part alone
        alive = self.column("exchange/live")
        total = live.get("total") or "?"
        return [
            self.group.label,
            str(run.get("seed")),
            self.state,
            f"{live.get('updates', run.summary.get('updates', 0))}/{total}",
            f"{loss[-1]:.3g}" if loss.size else "",
            f"{run.metric} {metric[-1]:.4g}" if metric.size else "",
            *(_duration(self.column(f"exchange/{name}_s")) for name in ("update", "wait", "compute")),
            f"{traffic / scale:.3g} {unit}{part}" if traffic else "",
            f"{alive[-1]:.0f}/{run.get('code.n')}" if alive.size else "",
        ]


def watch(paths: Sequence[Path]) -> tuple[list[Watched], list[str]]:
    """All runs at or below `paths`, the newest first, and a line for each of which nothing can be shown, and why."""
    found = {directory.resolve() for path in paths for directory in run_directories(path)}
    shown, others, parts = [], [], 1
    # As much of their paths as tells them apart.
    while len({one.parts[-parts:] for one in found}) < len(found):
        parts += 1
    for directory in sorted(found, key=lambda one: one.stat().st_mtime, reverse=True):
        name = "/".join(directory.parts[-parts:])
        try:
            shown.append(_watched(directory, name))
        except (ValueError, OSError) as error:  # also where its log is written just now
            others.append(f"{name}: {error}")
        except (TypeError, AttributeError, LookupError) as error:  # what a file by another hand leads to
            others.append(f"{name} cannot be read: {type(error).__name__}: {error}")
    return shown, others


def _watched(directory: Path, name: str) -> Watched:
    live, summary, failure = (mapping(directory / f"{name}.json") for name in ("live", "summary", "failure"))
    config = configuration(directory)
    if not config:
        raise ValueError(failure.get("sentence") or "nothing was logged yet")
    told = {**promised(config), "failures": live.get("failures"), **summary}
    logged = read_metrics(directory / "csv/metrics.csv", lambda name: True)
    run = Run(str(directory), told, config, lambda wanted: {name: logged[name] for name in logged if wanted(name)})
    one = Watched(Group(f"{name}: {run.scheme}", {}, [run], []), live, _state(live, summary, failure))
    # All that the page asks of it: a run that cannot answer is left out, and the others are shown.
    run.refuse_unreadable()
    _ = one.line, one.lost, timeline.states(run)
    return one


def _state(live: dict[str, Any], summary: dict[str, Any], failure: dict[str, Any]) -> str:
    if summary:
        return "finished"
    if failure or live.get("ended") not in (None, "trained"):
        return f"ended\n{failure.get('sentence') or live['ended']}"
    if is_gone(live.get("process") or {}):
        return "ended\nits process is gone, and left no word"
    if live.get("ended"):
        return "trained, judging the model"
    silent_s = time.time() - live.get("at", time.time())
    return "running" if silent_s < _SILENT_S else f"running?\nno word for {silent_s:.0f} s"


def page(paths: Sequence[Path], script: str) -> str:
    """The whole page, as it is now."""
    shown, others = watch(paths)
    lost = [line for one in shown for line in one.lost]
    with tempfile.TemporaryDirectory() as folder:
        figures = [figure(picture) for picture in _pictures(Path(folder), shown[:DRAWN])]
    left_out = [f"Figures show the newest {DRAWN} of {len(shown)} runs."] if len(shown) > DRAWN else []
    body = [
        "<h1>Runs</h1>",
        f'<p class="quiet">as of {time.strftime("%Y-%m-%d %H:%M:%S")}</p>',
        f'<div class="wide">{table_of(HEADER, [one.line for one in shown])}</div>',
        f"<p>Medians of the last {_RECENT} updates; bytes over all links.</p>",
        *(f"<p>{html.escape(line)}</p>" for line in [*others, *left_out]),
        "<h2>Lost workers</h2>",
        *([f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lost)}</ul>"] if lost else ["<p>none</p>"]),
        '<h2>Figures</h2><div class="figures">',
        *figures,
        "</div>",
    ]
    return document(f"{len(shown)} runs", body, script)


def _duration(seconds: Column) -> str:
    if not seconds.size:
        return ""
    median = float(np.median(seconds[-_RECENT:]))
    return f"{1000 * median:.3g} ms" if median < 1 else f"{median:.3g} s"


def _pictures(folder: Path, shown: Sequence[Watched]) -> list[Picture]:
    groups, pictures = [one.group for one in shown], []

    def drawn(name: str, caption: str) -> Path:
        pictures.append(Picture(folder / f"{name}.png", caption))
        return pictures[-1].path

    if any(one.column("exchange/loss", "train_loss").size for one in shown):
        _losses(drawn("loss", "Training loss against updates: medians of fiftieths of the run."), shown)
    for metric in dict.fromkeys(one.metric for one in groups):
        judged = [one for one in groups if one.metric == metric and len(one.runs[0].curve.value)]
        if judged:
            curves.draw(drawn(metric, f"{metric} at each validation."), judged, "updates")
    if any(timeline.states(one.runs[0]).size for one in groups):
        caption = "Arrivals in the last updates, by worker: who counted, on time or late, and who was lost."
        timeline.draw(drawn("arrivals", caption), groups, newest=True)
    timed = [one for one in shown if one.column("exchange/update_s").size]
    if timed:
        caption = "Waiting against computing in each update, and all bytes so far."
        _costs(drawn("costs", caption), timed)
    return pictures


def _losses(path: Path, shown: Sequence[Watched]) -> None:
    with drawing(path, COLUMN, 2.2 + legend_height([one.group.label for one in shown])) as panel:
        axes = panel.subplots()
        for one, look in zip(shown, looks([one.group for one in shown]), strict=True):
            loss = one.column("exchange/loss", "train_loss")
            pieces = np.array_split(np.stack([np.arange(1, len(loss) + 1), loss]), min(50, max(1, len(loss))), axis=1)
            along, up = np.array([np.median(piece, axis=1) for piece in pieces if piece.size]).reshape(-1, 2).T
            axes.plot(along, up, label=one.group.label, color=look.colour, linestyle=look.dashes)
        axes.set_xlabel("updates")
        axes.set_ylabel("training loss")
        legend(panel, axes.get_legend_handles_labels()[0], "")


def _costs(path: Path, shown: Sequence[Watched]) -> None:
    with drawing(path, 2 * COLUMN, 0.4 + 1.4 * len(shown)) as panel:
        for one, (left, right) in zip(shown, panel.subplots(len(shown), 2, squeeze=False), strict=True):
            for name, colour in (("compute", "#2b7bba"), ("wait", "#e08214")):
                seconds = one.column(f"exchange/{name}_s")
                left.plot(np.arange(1, len(seconds) + 1), 1000 * seconds, color=colour, linewidth=0.7, label=name)
            left.set_title(one.group.label, loc="left")
            left.set_ylabel("ms an update")
            left.set_ylim(bottom=0)
            left.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, ncols=2)
            sent = np.cumsum(one.column("exchange/bytes_up") + one.column("exchange/bytes_down"))
            scale, unit = bytes_unit(float(sent[-1]) if sent.size else 0.0)
            right.plot(np.arange(1, len(sent) + 1), sent / scale, color="#3f9b62")
            right.set_ylabel(f"{unit} over all links")
            right.set_ylim(bottom=0)
        left.set_xlabel("updates")
        right.set_xlabel("updates")
