"""What must hold of a run with at most n - K faults at a time, by its event log alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .log import Event

# A throttled link is slow only when its bucket's burst, 131 kB at 1 Mbit/s, has gone over it.
_BURST_S = 1.05


def violations(events: Sequence[Event], *, timed: bool = True) -> list[str]:
    """In words; empty: all is well.

    Args:
        events: of a log, in the order of time.
        timed: also check how soon after each fault the next update came.
    """
    run, done = _only(events, "run"), _only(events, "done")
    found = [*_hangs(events, done), *_lost_updates(events), *_healthy_lost(events), *_spoilt(events)]
    if timed:
        bound, slow = max(1.0, run["heartbeat_s"]) + one_update_s(events), _beside_throttles(events)
        found += [
            f"fault {fault['number']} ({fault['kind']}): the next update came after {waited:.2f} s, bound {bound:.2f} s"
            for fault, waited in next_updates(events)
            if waited > bound + (_BURST_S if fault["number"] in slow else 0.0)
        ]
    return found


def one_update_s(events: Sequence[Event]) -> float:
    """How long one update takes: the longest before any fault, without the first, which warms up."""
    times = update_times(events)
    faults = [event["t"] for event in events if event["event"] == "fault"]
    calm = [later - earlier for earlier, later in pairwise(times[1:]) if not faults or later <= faults[0]]
    return max(calm, default=0.0)


def next_updates(events: Sequence[Event]) -> list[tuple[Event, float]]:
    """Each fault, with the longest that one of the updates took that came after it and before the next fault showed.

    A fault may show late: when links end, or who was lost comes back. Where another fault comes before an update, that
    one waits for the other: it is counted from there.
    """
    times = update_times(events)
    found, faults = [], [event for event in events if event["event"] == "fault"]
    for fault, following in zip(faults, [*(event["t"] for event in faults[1:]), math.inf], strict=True):
        after = [time for time in times if time > fault["t"]]
        until = next((place for place, time in enumerate(after, 1) if time > following), len(after))
        waits = [
            later - max(earlier, *(other["t"] for other in faults if other["t"] < later))
            for earlier, later in pairwise([fault["t"], *after[:until]])
        ]
        if waits:
            found.append((fault, max(waits)))
    return found


def stalled_s(events: Sequence[Event]) -> float:
    """The longest that the machine did not run the command itself, in seconds."""
    return max((event["seconds"] for event in events if event["event"] == "stalled"), default=0.0)


def update_times(events: Sequence[Event]) -> list[float]:
    """When rank 0 had made its updates."""
    return [event["t"] for event in events if event["event"] == "update"]


def _beside_throttles(events: Sequence[Event]) -> set[int]:
    """Numbers of the faults that began while a link was throttled or had just been, that one included."""
    throttled, found = set(), set()
    for event in events:
        if event["event"] == "recovered":
            throttled.discard(event["number"])
        elif event["event"] == "fault":
            throttled |= {event["number"]} if event["kind"] == "throttle" else set()
            found |= {event["number"]} if throttled else set()
    return found


def _only(events: Sequence[Event], name: str) -> dict[str, Any]:
    return next((event for event in events if event["event"] == name), {"code": None, "left": [], "heartbeat_s": 5.0})


def _hangs(events: Sequence[Event], done: Event) -> list[str]:
    found = []
    if done["code"] != 0:
        found.append("rank 0 did not end in time" if done["code"] is None else f"rank 0 ended with {done['code']}")
    if done["code"] == 0 and done["left"]:  # after a failure they wait for a rank 0 that comes back
        found.append(f"processes did not end with rank 0: {done['left']}")
    killed = dict.fromkeys(range(_workers(events)), 0)
    for event in events:
        if event["event"] == "fault" and event["kind"] == "kill":
            killed[event["workers"][0]] += 1
        elif event["event"] == "ended" and event["rank"] and event["code"]:
            killed[event["rank"]] -= event["code"] == -9
            if event["code"] != -9 or killed[event["rank"]] < 0:
                found.append(f"rank {event['rank']} ended with {event['code']} at {event['t']:.1f} s")
    return found


def _workers(events: Sequence[Event]) -> int:
    return int(_only(events, "run").get("workers", 0))


def _lost_updates(events: Sequence[Event]) -> list[str]:
    updates = [event for event in events if event["event"] == "update"]
    found = []
    for earlier, later in pairwise(updates):
        if later["update"] != earlier["update"] + 1 or later["version"] != earlier["version"] + 1:
            found.append(f"update {later['update']} of version {later['version']} follows {earlier['update']}")
    wished = [event["update"] for event in events if event["event"] == "wish"]
    if wished and updates and updates[-1]["update"] != wished[-1]:
        found.append(f"the run ended at update {updates[-1]['update']} instead of {wished[-1]}")
    if not updates or updates[0]["update"] != 1:
        found.append("the first update is missing")
    return found


def _healthy_lost(events: Sequence[Event]) -> list[str]:
    found, suspects = [], {}
    for event in events:
        if event["event"] == "fault":
            suspects[event["number"]] = set(event["suspects"])
        elif event["event"] == "recovered":
            suspects.pop(event["number"], None)
        elif event["event"] == "lost" and not any(event["worker"] in those for those in suspects.values()):
            found.append(f"worker {event['worker']} was lost without a fault after update {event['update']}: "
                         f"{event['reason']}")  # fmt: skip
    return found


def _spoilt(events: Sequence[Event]) -> list[str]:
    metrics = [event["metric"] for event in events if event["event"] == "trained"]
    return [f"validation accuracy {metrics[0]} at the end"] if metrics and not metrics[0] > 0.15 else []
