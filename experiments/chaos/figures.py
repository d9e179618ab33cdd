"""Figures of a run, derived from its event log alone: goodput, recovery times, accuracy, and a picture of it all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .log import Event
from .run import BEGINS

_INK, _LOST, _FAULT = "#222222", "#8c2d04", "#f0a35e"
_COUNTED = "#bfd9ec"
_DPI = 150


@dataclass(frozen=True)
class Recovery:
    """How a lost worker came back.

    Attributes:
        worker: who.
        kind: of the fault.
        since: seconds: of a SIGKILL; of any other fault's end, or of the loss where that is later.
        seconds: from then to the update in which its codeword counted again.
    """

    worker: int
    kind: str
    since: float
    seconds: float


def goodput(events: Sequence[Event]) -> float:
    """Committed updates a second, from where faults may begin to the last update."""
    updates = [event for event in events if event["event"] == "update" and event["update"] >= BEGINS]
    if len(updates) < 2:
        return 0.0
    first, last = updates[0], updates[-1]
    return float((last["update"] - first["update"]) / (last["t"] - first["t"]))


def recoveries(events: Sequence[Event]) -> list[Recovery]:
    """Of every fault that cost its worker its place: the time from the last loss while it had an effect."""
    found = []
    counted = [(event["t"], set(event["arrived"])) for event in events if event["event"] == "update"]
    over = {event["number"]: event["t"] for event in events if event["event"] == "undone"}
    ends = {event["number"]: event["t"] for event in events if event["event"] == "recovered"}
    for fault in (event for event in events if event["event"] == "fault"):
        end = ends.get(fault["number"], float("inf"))
        for worker in fault["suspects"]:
            lost = [e["t"] for e in events if e["event"] == "lost" and e["worker"] == worker and fault["t"] < e["t"]]
            lost = [time for time in lost if time <= end]
            if not lost:
                continue
            back = next((time for time, arrived in counted if time > lost[-1] and worker in arrived), None)
            if back is None:
                continue
            undone = over.get(fault["number"], fault["t"])
            since = fault["t"] if fault["kind"] == "kill" else min(back, max(undone, lost[0]))
            if fault["kind"] != "kill" and undone > back:  # another process came back before the fault was over
                since = lost[0]
            found.append(Recovery(worker, fault["kind"], since, back - since))
    return found


def accuracy(events: Sequence[Event]) -> float | None:
    """At the end of training; None: it did not get there."""
    return next((event["metric"] for event in events if event["event"] == "trained"), None)


def table(events: Sequence[Event], calm: Sequence[Event] | None) -> str:
    """What a run came to, beside the one without faults."""
    faults = [event for event in events if event["event"] == "fault"]
    lost = [event for event in events if event["event"] == "lost"]
    lines = [
        f"faults     {len(faults)}: " + ", ".join(
            f"{sum(fault['kind'] == kind for fault in faults)} {kind}" for kind in sorted({f["kind"] for f in faults})
        ),
        f"erasures   {len(lost)}",
        f"updates    {sum(event['event'] == 'update' for event in events)}, {goodput(events):.2f} a second",
    ]  # fmt: skip
    if calm:
        rate = goodput(calm)
        lines.append(f"without    {rate:.2f} a second: goodput {goodput(events) / rate:.1%}")
        lines.append(f"accuracy   {_percent(accuracy(events))} at the end, {_percent(accuracy(calm))} without faults")
    else:
        lines.append(f"accuracy   {_percent(accuracy(events))} at the end")
    times = recoveries(events)
    for kind in sorted({recovery.kind for recovery in times}):
        seconds = [recovery.seconds for recovery in times if recovery.kind == kind]
        begin = "from death" if kind == "kill" else "from its end"
        lines.append(
            f"back       {kind}: median {statistics.median(seconds):.2f} s {begin} to the first counted codeword, "
            f"longest {max(seconds):.2f} s, of {len(seconds)}"
        )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"


def draw(events: Sequence[Event], path: Path) -> None:
    """Write the run's timeline as a PNG file: who counted when, faults, erasures, and updates a second."""
    run = next(event for event in events if event["event"] == "run")
    figure = Figure(figsize=(12, 5), layout="constrained", dpi=_DPI)
    who, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    updates = [event for event in events if event["event"] == "update"]
    for worker in range(run["workers"]):
        times = [event["t"] for event in updates if worker in event["arrived"]]
        who.plot(times, [worker] * len(times), "|", color=_COUNTED, markersize=9, zorder=1)
    _faults(who, events)
    who.set_ylabel("worker")
    who.set_yticks(range(run["workers"]))
    end = max((event["t"] for event in updates), default=1.0)
    width = max(0.5, end / 200)
    edges = [width * number for number in range(int(end / width) + 1)]
    counts = [sum(edge <= event["t"] < edge + width for event in updates) / width for edge in edges]
    rate.step(edges, counts, where="post", color=_INK, linewidth=0.8)
    rate.set_ylabel("updates/s")
    rate.set_xlabel("seconds")
    rate.set_ylim(bottom=0)
    for axes in (who, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=_INK)
    figure.savefig(path, format="png", metadata={"Software": None})


def _faults(axes: Axes, events: Sequence[Event]) -> None:
    over = {event["number"]: event["t"] for event in events if event["event"] == "undone"}
    for fault in (event for event in events if event["event"] == "fault"):
        begin, end = fault["t"], over.get(fault["number"], fault["t"])
        for worker in fault["workers"] or [0]:
            axes.plot([begin, end], [worker + 0.3] * 2, color=_FAULT, linewidth=3, solid_capstyle="butt", zorder=2)
        worker = (fault["workers"] or [0])[0]
        axes.annotate(fault["kind"], (begin, worker + 0.36), fontsize=6, color=_INK, zorder=4)
    lost = [event for event in events if event["event"] == "lost"]
    axes.plot([e["t"] for e in lost], [e["worker"] for e in lost], "x", color=_LOST, markersize=6, zorder=3)
