"""What is derived from an event log."""

import pytest

from experiments.chaos.checks import violations
from experiments.chaos.figures import accuracy, draw, goodput, recoveries, table
from experiments.chaos.log import Log, Tail, read


def updates(first, last, every=0.1, arrived=(0, 1, 2, 3)):
    return [
        {"t": round(every * n, 4), "event": "update", "update": n, "version": n - 1, "arrived": list(arrived),
         "refused": [], "live": len(arrived)}
        for n in range(first, last + 1)
    ]  # fmt: skip


def fault(t, kind="kill", workers=(2,), suspects=None, number=0):
    suspects = workers if suspects is None else suspects
    return {"t": t, "event": "fault", "number": number, "kind": kind, "workers": list(workers), "lasts_s": 0.0,
            "suspects": list(suspects)}  # fmt: skip


def lost(t, worker):
    return {"t": t, "event": "lost", "worker": worker, "update": 0, "reason": "its link ended"}


RUN = {"t": 0.0, "event": "run", "workers": 4, "wait_for": 3, "heartbeat_s": 1.0, "seed": 0, "place": "forks"}
END = [
    {"t": 9.0, "event": "wish", "update": 60},
    {"t": 9.1, "event": "trained", "metric": 0.9},
    {"t": 9.2, "event": "done", "code": 0, "left": []},
]
UNDONE = {"t": 3.02, "event": "undone", "number": 0}
# Worker 2 is killed at 3.01 and counts again at 4.0.
GOOD = [
    RUN, *updates(1, 30), fault(3.01), UNDONE, lost(3.1, 2), *updates(31, 39, arrived=(0, 1, 3)), *updates(40, 60),
    {"t": 5.0, "event": "recovered", "number": 0}, *END,
]  # fmt: skip


def without(events, update):
    return [event for event in events if event["event"] != "update" or event["update"] != update]


def of(events):
    return sorted(events, key=lambda event: event["t"])


def test_a_run_in_which_all_is_well():
    events = of(GOOD)
    assert violations(events) == []
    assert goodput(events) == pytest.approx(10.0)
    (back,) = recoveries(events)
    assert (back.worker, back.kind, back.seconds) == (2, "kill", pytest.approx(0.99))
    assert accuracy(events) == 0.9
    assert "goodput 100.0%" in table(events, events)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: [*e, lost(3.5, 1)], "worker 1 was lost without a fault"),
        (lambda e: [*e, lost(5.5, 2)], "worker 2 was lost without a fault"),
        (lambda e: without(e, 33), "update 34 of version 33 follows"),
        (lambda e: without(e, 60), "ended at update 59 instead of 60"),
        (lambda e: [{**x, "t": x["t"] + 2} if x["t"] > 3.15 else x for x in e], "the next update came after 2.1"),
        (lambda e: [{**x, "code": None} if x["event"] == "done" else x for x in e], "rank 0 did not end in time"),
        (lambda e: [{**x, "code": 1} if x["event"] == "done" else x for x in e], "rank 0 ended with 1"),
        (lambda e: [{**x, "left": ["python"]} if x["event"] == "done" else x for x in e], "did not end with rank 0"),
        (lambda e: [*e, {"t": 4.0, "event": "ended", "rank": 3, "pid": 1, "code": 1}], "rank 3 ended with 1"),
        (lambda e: [*e, {"t": 4.0, "event": "ended", "rank": 3, "pid": 1, "code": -9}], "rank 3 ended with -9"),
        (lambda e: [{**x, "metric": float("nan")} if x["event"] == "trained" else x for x in e], "validation accuracy"),
    ],
)  # fmt: skip
def test_what_must_not_be_is_seen(change, said):
    (sentence, *_) = violations(of(change(GOOD)))
    assert said in sentence


def test_either_end_of_a_cut_may_be_lost_and_the_other_may_not():
    cut = fault(3.01, "cut", (2, 3))
    for worker, count in ((2, 0), (3, 0), (1, 1)):
        events = [cut if event["event"] == "fault" else event for event in GOOD if event["event"] != "lost"]
        assert len(violations(of([*events, lost(3.1, worker)]))) == count


def test_a_log_is_read_while_it_is_written(tmp_path):
    log, tail = Log(tmp_path / "events", 0.0), Tail(tmp_path / "events")
    assert tail.read() == []
    log.write("update", update=1)
    with (tmp_path / "events").open("a") as half:
        half.write('{"t": 1.0, "event": "lo')
    assert [event["event"] for event in tail.read()] == ["update"]
    with (tmp_path / "events").open("a") as half:
        half.write('st"}\n')
    assert [event["event"] for event in tail.read()] == ["lost"]
    assert len(read(tmp_path / "events")) == 2


def test_the_timeline_is_drawn(tmp_path):
    draw(of(GOOD), tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
