"""The command on real runs: from another directory, in another process, with what a reader opens afterwards."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.compare import main
from experiments.comparison.find import local_runs
from experiments.comparison.wandb_runs import offline_run
from tests.commands import PATIENCE_S, run
from tests.experiments.comparison.conftest import ROOT

pytestmark = pytest.mark.slow
PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = {
    "val_acc_against_wall.png", "val_acc_against_bytes.png", "val_acc_against_updates.png", "workers.png",
    "arrivals.png",
}  # fmt: skip


class Page(HTMLParser):
    """What a page shows and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                kind, _, data = value.partition(";base64,")
                if kind == "data:image/png":
                    self.images.append(base64.b64decode(data))
                else:
                    self.fetched.append(value)

    def handle_data(self, data):
        self.text.append(data)


def compare(directory, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *map(str, arguments)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_command_that_was_refused_is_no_run_and_a_failed_one_is_named(tmp_path):
    for place in ("refused/.hydra", "failed/.hydra", "broken/.hydra", "killed/csv"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "broken/failure.json").write_text('["no sentence"]')
    (tmp_path / "failed/failure.json").write_text('{"sentence": "ValueError: no data"}')

    runs, left_out = local_runs([tmp_path])

    assert runs == []
    assert left_out == [
        f"{tmp_path}/broken (failed, but failure.json holds no settings or figures by name)",
        f"{tmp_path}/failed (failed: ValueError: no data)",
        f"{tmp_path}/killed (unfinished)",
    ]


@pytest.mark.real_start
def test_a_sweep_becomes_a_table_figures_a_csv_and_a_page(sweep, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(sweep, runs, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    shutil.copytree(runs / "0", runs / "deeper/killed")
    (runs / "deeper/killed/summary.json").unlink()

    done = compare(tmp_path, "runs", "--baseline", "scheme=k_async", "--x", "bytes")

    assert done.returncode == 0, done.stderr
    assert re.search(r"lwpd +2 ", done.stdout)
    assert "few" in done.stdout  # two pairs can show nothing
    assert "Left out: 1 of the runs: runs/deeper/killed (unfinished)." in done.stdout
    out = runs / "comparison"
    assert {path.name for path in out.iterdir()} == {*FIGURES, "runs.csv", "comparison.html"}
    assert all((out / name).read_bytes().startswith(PNG) for name in FIGURES)

    with (out / "runs.csv").open(newline="") as file:
        lines = {(line["scheme"], line["seed"]): line for line in csv.DictReader(file)}
    assert len(lines) == 4
    for directory in (runs / str(number) for number in range(4)):
        summary = json.loads((directory / "summary.json").read_text())
        line = lines[summary["scheme"], str(summary["seed"])]
        assert float(line["wall_to_target"]) == summary["time_to_target_s"]
        assert float(line["final"]) == summary["val_acc"]
        assert int(line["bytes_up"]) == summary["bytes_up"]
        assert int(line["bytes_to_target"]) <= summary["bytes_up"] + summary["bytes_down"]

    page = Page()
    page.feed((out / "comparison.html").read_text())
    assert page.fetched == []
    assert "url(" not in (out / "comparison.html").read_text()
    assert sorted(page.images) == sorted((out / name).read_bytes() for name in FIGURES)
    assert '"wait_for": 3' in "".join(page.text)  # a run's configuration

    again, _ = local_runs([runs])  # what was written is not read as a run
    assert len(again) == 4


def test_a_continued_run_costs_what_all_its_parts_cost(sweep, tmp_path, capsys):
    command = [
        sys.executable, "-m", "experiments.train", "scheme=k_async", "seed=0", "code=lwpd_4_2_2", "model.hidden=[16]",
        "trainer.max_steps=8", "trainer.val_check_interval=2", "target.value=0.05", "logger=csv",
        f"ckpt_path={sweep / '2/checkpoints/last.ckpt'}", f"hydra.run.dir={tmp_path / 'on'}",
    ]  # fmt: skip
    done = run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    shutil.copytree(sweep / "2", tmp_path / "begun", ignore=shutil.ignore_patterns("wandb"))  # and moved

    first, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("begun", "on"))
    assert whole["resumed_from"] == str(sweep / "2")
    assert whole["resumed_at_update"] == 6  # last.ckpt is where the run ended
    assert whole["updates"] == 8
    assert first["samples"] < whole["samples"] <= 8 * whole["data"]["batch_size"]  # parts that came too late are none
    assert first["bytes_up"] < whole["bytes_up"]
    assert whole["wall_s"] > whole["resumed_at_s"] > first["time_to_target_s"]
    assert whole["time_to_target_s"] == first["time_to_target_s"]

    main([str(tmp_path)])

    assert "1 run in 1 group;" in capsys.readouterr().out
    page = (tmp_path / "comparison/comparison.html").read_text()
    assert f"One run: {tmp_path}/begun and {tmp_path}/on, which continues it." in page
    ((joined,), left_out) = local_runs([tmp_path])
    assert left_out == []
    assert joined.curve.updates.tolist() == [2, 4, 6, 8]
    assert (np.diff(joined.curve.wall) > 0).all()
    assert joined.curve.bytes[-1] == whole["bytes_up"] + whole["bytes_down"]
    (tmp_path / "begun/summary.json").unlink()  # as if it had been killed
    ((again,), left_out) = local_runs([tmp_path])
    assert (again.curve.updates.tolist(), left_out) == ([2, 4, 6, 8], [])


def test_an_offline_wandb_run_says_what_the_csv_says(sweep):
    ((local,), _) = local_runs([sweep / "0"])
    (directory,) = (sweep / "0/wandb").glob("offline-run-*")

    read = offline_run(directory)

    assert (read.scheme, read.get("seed"), read.get("code.t")) == (local.scheme, local.get("seed"), local.get("code.t"))
    assert read.config["data"] == local.config["data"]
    assert read.final == local.final
    for axis in ("value", "updates", "wall", "bytes"):
        np.testing.assert_allclose(getattr(read.curve, axis), getattr(local.curve, axis), rtol=1e-6)
    assert len(read.curve.value) == 3
    assert set(read.arrivals) == set(local.arrivals)
    for name, column in local.arrivals.items():
        np.testing.assert_array_equal(read.arrivals[name], column)


def test_runs_that_only_wandb_keeps_are_found(sweep, tmp_path, capsys):
    for number in (0, 2):  # one of each scheme: reading one takes seconds
        shutil.copytree(sweep / str(number) / "wandb", tmp_path / "kept" / str(number), symlinks=True)

    main([str(tmp_path / "kept"), "--out", str(tmp_path / "out")])

    assert "2 runs in 2 groups" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FIGURES


def test_a_wandb_run_that_was_killed_is_left_out(sweep, tmp_path):
    (directory,) = (sweep / "0/wandb").glob("offline-run-*")
    (log,) = directory.glob("*.wandb")
    (tmp_path / "offline-run-cut").mkdir()
    (tmp_path / "offline-run-cut" / log.name).write_bytes(log.read_bytes()[: log.stat().st_size // 2])

    runs, left_out = local_runs([tmp_path])

    assert runs == []
    assert left_out == [f"{tmp_path}/offline-run-cut (unfinished)"]


def test_summaries_that_are_none_are_named(sweep, tmp_path):
    for name, text in {"cut": '{"scheme": "lw', "other": '{"loss": 1.0}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    shutil.copytree(sweep / "1", tmp_path / "good")

    runs, left_out = local_runs([tmp_path, tmp_path / "good"])

    assert len(runs) == 1
    assert [line.partition(" (cannot be read: ")[0] for line in left_out] == [f"{tmp_path}/cut", f"{tmp_path}/other"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"^Nothing to compare: name directories that hold runs, such as outputs, or --online entity/project.$"),
        (["{empty}"], r"^No finished run in .*: train one with \S+ -m experiments.train, .*ends.$"),
        (["{empty}/none"], r"none is no directory: use one that holds runs, such as outputs.$"),
        (["{sweep}", "--x", "bytes", "{empty}/none"], r"none is no directory: use one that holds runs, such as"),
        (["{sweep}", "--report"], r"^--report writes to W&B: name the project with --online entity/project.$"),
        (["{sweep}", "--online", "project"], r"^--online project is no project: use entity/project.$"),
        (["{sweep}", "--baseline", "scheme=ddp"], r"^--baseline scheme=ddp fits no group: there is scheme=k_async"),
        (["{sweep}", "--group-by", "code.q"], r"^--group-by code.q has no value in any run's .*: use one of scheme"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(arguments, sentence, sweep, tmp_path):
    given = [argument.format(empty=tmp_path, sweep=sweep) for argument in arguments]

    with pytest.raises(SystemExit) as refused:
        main([*given, "--out", str(tmp_path / "out")])

    assert re.search(sentence, str(refused.value.code))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("out", "why"), [("/proc/nope", "No such file or directory"), (__file__, "File exists")])
def test_where_nothing_can_be_written_is_refused_before_the_work(sweep, capsys, out, why):
    with pytest.raises(SystemExit) as refused:
        main([str(sweep), "--out", out])

    assert str(refused.value.code) == f"--out {out} cannot be written to ({why}): use a directory that can."
    assert capsys.readouterr().out == ""


def test_a_report_without_its_extra_is_one_sentence(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(SystemExit, match=r"pip install 'lwpd-lightning\[report\]'$"):
        main([str(sweep), "--online", "team/project", "--report", "--out", str(tmp_path / "out")])
