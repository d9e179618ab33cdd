"""A run is watched while it runs: what it writes, and the page that is made of it, over a real port."""

import base64
import html
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from experiments.comparison import timeline, watched
from experiments.comparison.find import local_runs
from experiments.identity import identity
from experiments.watch import main
from tests.commands import PATIENCE_S, ForkedJob, popen
from tests.experiments.comparison.runs import run
from tests.experiments.test_train_command import ROOT

ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
RUN = [
    sys.executable, "-m", "experiments.train", "logger=csv", "code=lwpd_4_2_2", "model.hidden=[16]",
    "model.schedule=null", "trainer.max_steps=1000000", "trainer.max_epochs=-1", "hydra.run.dir=run",
    "callbacks.live.every_s=0", "+callbacks.faults._target_=lwpd_lightning.injection.FaultInjector",
    "+callbacks.faults.kills={3: 2}", "scheme.strategy.restart_workers=false",
]  # fmt: skip


def seen(path, wanted):
    """The document, once it says what is wanted."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if path.is_file() and wanted(document := json.loads(path.read_text())):
            return document
        time.sleep(0.05)
    raise AssertionError(f"{path} never said it: {path.read_text() if path.is_file() else 'it is not there'}")


def pictures(page):
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def _ask_and_hang_up(port):
    with socket.create_connection(("127.0.0.1", port)) as asking:
        asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a process that is killed


@pytest.mark.slow
def test_a_run_is_seen_while_it_runs_and_when_it_has_ended(tmp_path):
    with ForkedJob(RUN, cwd=tmp_path, env=ENVIRONMENT) as job:
        live = seen(tmp_path / "run/live.json", lambda live: live["failures"] and live["updates"] > 50)
        assert (live["total"], live["ended"]) == (1000000, None)
        assert live["process"] == identity(job.pid)
        command = [sys.executable, "-m", "experiments.watch", "run", "--port", "0"]
        with popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=-1, stderr=-1) as server:
            address = re.match(r"(http://127.0.0.1:\d+/) ", server.stdout.readline().decode())[1]
            page = urllib.request.urlopen(address, timeout=PATIENCE_S).read().decode()
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}etc/passwd", timeout=PATIENCE_S)
            _ask_and_hang_up(urlsplit(address).port)
            assert urllib.request.urlopen(address, timeout=PATIENCE_S).status == 200
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE_S) == 130
            assert server.stderr.read() == b""
        job.interrupt(signal.SIGTERM)
        assert job.wait(PATIENCE_S).exit_code == 143

    assert "<td>run: lwpd</td><td>0</td><td>running" in page
    assert re.search(r"<td>\d+/1000000</td>", page)
    assert re.search(r"<li>run: lwpd: worker 3 after update \d+ \(was killed by SIGKILL\)</li>", page)
    assert "<td>3/4</td>" in page  # workers that are left
    assert len(pictures(page)) >= 3  # loss, arrivals, costs; and the validations, where there were any
    assert all(picture.startswith(b"\x89PNG") for picture in pictures(page))
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    main([str(tmp_path), "--once", str(tmp_path / "page.html")])
    ended = (tmp_path / "page.html").read_text()
    assert "<td>ended<small>SIGTERM" in ended
    assert "fetch(" not in ended


def written(directory, live=None, **documents):
    """What runs leave in a directory."""
    directory.mkdir()
    (directory / ".hydra").mkdir()
    (directory / "csv").mkdir()
    if live is not None:
        (directory / "csv/hparams.yaml").write_text(
            "seed: 1\nscheme: {name: ddp}\ncode: {n: 4}\ntarget: {metric: val_acc, mode: max, value: 0.9}\n"
        )
        rows = (
            "step,train_loss,exchange/update_s,exchange/wait_s,exchange/compute_s,exchange/bytes_up,exchange/bytes_down"
        )
        (directory / "csv/metrics.csv").write_text(f"{rows}\n0,2.5,,,,,\n1,,0.25,0.1,0.15,1000,500\n1,0.5,")
        documents["live"] = live
    for name, document in documents.items():
        (directory / f"{name}.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({"live": {"ended": None, "at": time.time() + 3600}}, "running"),
        ({"live": {"ended": None, "at": 1000.0}}, r"running\?\nno word for \d+ s"),
        ({"live": {"ended": "trained", "at": 1000.0}}, "trained, judging the model"),
        ({"live": {"ended": "KeyboardInterrupt", "at": 1000.0}}, "ended\nKeyboardInterrupt"),
        ({"live": {"ended": None, "at": 1000.0}, "failure": {"sentence": "it burnt"}}, "ended\nit burnt"),
        ({"live": {}, "summary": {"updates": 7, "val_acc": 0.5}}, "finished"),
    ],
)
def test_the_state_of_a_run_is_said_in_words(tmp_path, told, state):
    written(tmp_path / "one", **told)

    ((one,), others) = watched.watch([tmp_path])

    assert re.fullmatch(state, one.state)
    assert others == []
    page = watched.page([tmp_path], "")
    assert "<td>one: ddp</td><td>1</td>" in page
    assert "<td>2.5</td>" in page  # a line that is being written is none
    assert "<td>250 ms</td><td>100 ms</td><td>150 ms</td><td>1.5 kB</td>" in page


def test_a_run_whose_process_is_gone_has_ended(tmp_path):
    with subprocess.Popen(["sleep", "1000"]) as process:
        live = {"ended": None, "at": time.time(), "process": identity(process.pid)}
        written(tmp_path / "one", live=live)
        alive = watched.watch([tmp_path])[0][0].state
        process.kill()
    ((one,), _) = watched.watch([tmp_path])

    assert alive == "running"
    assert one.state == "ended\nits process is gone, and left no word"
    # Of another machine nothing is known.
    written(tmp_path / "two", live={**live, "at": 1000.0, "process": {**live["process"], "machine": "another"}})
    ((two,), _) = watched.watch([tmp_path / "two"])
    assert two.state.startswith("running?")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        written(tmp_path / day / "0", live={})

    shown, _ = watched.watch([tmp_path])

    assert {one.group.label for one in shown} == {"monday/0: ddp", "tuesday/0: ddp"}


def test_a_run_that_has_logged_nothing_is_named(tmp_path):
    written(tmp_path / "one")
    written(tmp_path / "two", failure={"sentence": "t=3 does not divide k=4."})

    page = watched.page([tmp_path], "")

    assert "one: nothing was logged yet" in page
    assert "two: t=3 does not divide k=4." in page


def test_a_run_whose_target_is_a_word_leaves_the_others_to_be_seen_while_they_run(tmp_path):
    for directory in ("bad", "good"):
        written(tmp_path / directory, live={"ended": None, "at": time.time() + 3600})
    hparams = tmp_path / "bad/csv/hparams.yaml"
    hparams.write_text(hparams.read_text().replace("value: 0.9", "value: high"))
    (tmp_path / "bad/csv/metrics.csv").write_text("step,val_acc,val_wall_s\n1,0.5,\n1,,2.0\n")

    main([str(tmp_path), "--once", str(tmp_path / "page.html")])

    page = (tmp_path / "page.html").read_text()
    assert "<td>good: ddp</td>" in page
    assert "<p>bad: its target.value=high is no number</p>" in page


TARGET = {"metric": "val_acc", "mode": "max", "value": 0.9}
BROKEN = {
    "a word": ("summary.json", '{"target": {"metric": "val_acc", "value": "high"}}',
               "its target.value=high is no number"),
    "a list": ("csv/hparams.yaml", "[1, 2]\n", "hparams.yaml holds no settings or figures by name"),
    "no YAML": ("csv/hparams.yaml", "a: b: c\n", "hparams.yaml is broken: "),
    "no JSON": ("summary.json", '{"updates": ', "summary.json is broken: "),
    "a number": ("failure.json", "3", "failure.json holds no settings or figures by name"),
    "no figure": ("summary.json", json.dumps({"target": TARGET, "val_acc": "good"}),
                  "could not convert string to float: 'good'"),
    "no worker": ("live.json", '{"failures": [{"reason": "burnt"}]}', "KeyError: 'worker'"),
    "no number": ("csv/metrics.csv", "step,val_acc\n0,0.5\n1,high\n", "metrics.csv is broken at line 3: could not"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path, kind):
    name, text, reason = BROKEN[kind]
    for directory in ("bad", "good"):
        written(tmp_path / directory, live={"ended": "trained", "at": 1.0}, summary={"target": TARGET, "val_acc": 0.5})
    (tmp_path / "bad" / name).write_text(text)

    main([str(tmp_path), "--once", str(tmp_path / "page.html")])

    page = html.unescape((tmp_path / "page.html").read_text())
    assert "<td>good: ddp</td>" in page
    assert "<td>bad: ddp</td>" not in page
    assert re.search(rf"<p>bad(:| cannot be read:) {re.escape(reason)}", page)
    runs, left_out = local_runs([tmp_path])
    if kind not in ("a number", "no worker"):  # files that compare has no use for
        assert [run.source for run in runs] == [str(tmp_path / "good")]
        assert left_out[0].startswith(f"{tmp_path / 'bad'} (cannot be read: {reason}")


def test_the_newest_updates_are_drawn(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axes, title, **_: shown.setdefault("title", title))
    series = {
        f"exchange/{name}/0": [value] * (timeline.UPDATES + 80) for name, value in (("arrived", 1), ("staleness", 0))
    }

    timeline.draw(tmp_path / "arrivals.png", [watched.Group("one", {}, [run(series=series)], [])], newest=True)

    assert f"updates 81-{timeline.UPDATES + 80} of {timeline.UPDATES + 80}" in shown["title"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{empty}/none"], r"none is no directory: use a run's, or one that holds runs, such as outputs.$"),
        (["{empty}"], r"^No run in .*: start one with \S+ -m experiments.train.$"),
        (["{run}", "--once", "{empty}/none/page.html"], r"cannot be written \(No such file or directory\)"),
        (["{run}", "--once", "page.html", "{empty}/none"], r"none is no directory: use a run's, or one that holds"),
        (["{run}", "--port", "70000"], r"^--port 70000 cannot be had \(.*\): use another, or 0 for any.$"),
    ],
)  # fmt: skip
def test_what_cannot_be_watched_is_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    written(tmp_path / "run", live={})

    with pytest.raises(SystemExit) as refused:
        main([argument.format(empty=tmp_path / "empty", run=tmp_path / "run") for argument in arguments])

    assert re.search(sentence, str(refused.value.code))
