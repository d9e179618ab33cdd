"""The summary file is whole or absent, and the table says what the summary holds."""

import json
import subprocess

import pytest

from experiments.provenance import git_revision
from experiments.report import rows
from experiments.summary import write_atomically
from lwpd_lightning import lwpd_code, uncoded

MEASURED = {
    "scheme": "lwpd",
    "code": {"family": "lwpd", "n": 8, "k": 4, "t": 2, "A": 2, "B": 2},
    "wait_for": 4,
    "target": {"metric": "val_acc", "mode": "max", "value": 0.9},
    "time_to_target_s": 3.25,
    "val_acc": 0.9375,
    "updates": 40,
    "wall_s": 9.5,
    "fit_s": 6.5,
    "startup_s": 1.5,
    "imports_s": 1.0,
    "assembly_s": 0.5,
    "judging_s": 0.25,
    "gradient_bytes": 4000,
    "bytes_up": 560_000,
    "bytes_down": 1_234_000,
    "bytes_up_per_update_per_worker": 2000.0,
    "staleness_mean": 0.25,
    "staleness_max": 3,
    "late_codewords": 11,
    "dropped_codewords": 0,
    "inclusion_rate": [1.0, 0.25, 0.75],
    "failures": [{"worker": 2, "update": 17, "reason": "killed"}],
    "wait_s_mean": 0.004,
    "compute_s_mean": 0.002,
    "arrivals_mean": 4.5,
}


def test_the_table_is_made_of_measured_figures():
    lines = dict(rows(MEASURED, lwpd_code(8, 4, 2)))

    assert lines["result"] == "val_acc 0.9375 after 40 updates (target 0.9 first reached after 3.2 s)"
    assert lines["upload"] == "2 kB a codeword, 50% of the whole gradient (4 kB)"
    assert lines["inclusion rate"] == "lowest 0.25 (worker 1), highest 1.00 (worker 0)"
    assert lines["lost workers"] == "worker 2 after update 17 (killed)"
    assert lines["staleness"] == "11 late codewords counted, 0 dropped; mean 0.25, highest 3 updates"
    assert "any 5 of 8 codewords" in lines["any arrivals"]
    assert lines["cost"] == "each worker computes 50% to 100% of every batch, all together 6 batches an update"


def test_figures_of_the_last_part_of_a_run_that_went_on_are_said_to_be():
    lines = dict(rows({**MEASURED, "resumed_at_update": 20}, lwpd_code(8, 4, 2)))

    of_the_part = {name for name, text in lines.items() if text.endswith(" (since update 20, where it went on)")}
    assert of_the_part == {"waiting", "staleness", "inclusion rate"}


def test_one_batch_is_one():
    assert dict(rows(MEASURED, uncoded(4)))["cost"].endswith("all together 1 batch an update")


def test_the_parts_of_a_runs_time_add_up():
    parts = "imports 1.0 s, data and model 0.5 s, the workers' start-up 1.5 s, training 5.0 s, judging the model 0.2 s"
    assert dict(rows(MEASURED, None))["time"] == f"9.5 s in all: {parts}, the rest 1.2 s"

    unmeasured = {**MEASURED, "startup_s": None, "fit_s": None}
    parts = "imports 1.0 s, data and model 0.5 s, judging the model 0.2 s"
    assert dict(rows(unmeasured, None))["time"] == f"9.5 s in all: {parts}, training and the rest 7.8 s"


def test_whom_a_shortened_run_spared_is_said():
    spared = {"failures": [], "kills_to_come": [{"worker": 2, "update": 100}]}

    lines = dict(rows({**MEASURED, **spared}, lwpd_code(8, 4, 2)))

    assert lines["lost workers"] == "none; worker 2 was to be killed at update 100, which never came"


def test_any_is_said_only_of_what_was_tried_one_by_one():
    small = dict(rows({**MEASURED, "wait_for": 3}, lwpd_code(8, 4, 2)))["any arrivals"]
    large = dict(rows({**MEASURED, "wait_for": 32}, lwpd_code(32, 16, 4)))["any arrivals"]

    assert "from any 5 of 8" in small
    assert "of the sets of K=3" in small
    assert "from any 31 of 32, and each of 300 sampled sets of" in large


def test_a_run_without_a_coded_exchange_has_no_lines_about_it():
    plain = {**MEASURED, **dict.fromkeys(["code", "bytes_up", "startup_s", "time_to_target_s", "val_acc"])}

    lines = dict(rows(plain, None))

    assert set(lines) == {"result", "time"}
    assert lines["result"] == "val_acc not measured after 40 updates (target not reached: 0.9)"


def test_a_run_by_all_reduce_has_lines_about_bytes_and_waiting_only():
    coded = ("code", "wait_for", "staleness_mean", "staleness_max", "inclusion_rate", "failures", "arrivals_mean")
    lines = dict(rows({**MEASURED, **dict.fromkeys(coded)}, None))

    assert set(lines) == {"result", "time", "upload", "whole run", "waiting"}
    assert lines["upload"] == "2 kB a worker and update, 50% of the whole gradient (4 kB)"
    assert lines["waiting"] == "4.0 ms an update for all ranks' gradients, beside 2.0 ms of a worker's own computing"


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "summary.json"
    write_atomically(path, {"updates": 1})

    with pytest.raises(TypeError):
        write_atomically(path, {"updates": 2, "broken": object()})

    assert json.loads(path.read_text()) == {"updates": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_revision_is_the_checkouts():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")

    assert git_revision().removesuffix("-dirty") == head.stdout.strip()
