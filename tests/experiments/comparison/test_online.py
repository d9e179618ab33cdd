"""`--online` and `--report` against a server of this machine, by the client that users have."""

import csv
import re
import sys

import pytest

from tests.commands import run
from tests.experiments.comparison.conftest import ROOT
from tests.experiments.wandb_server import serving

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.slow


def online_run(name, scheme, seed, reached_s, state="finished"):
    """A run as our logger leaves it at W&B: three updates, each followed by a validation and its clock."""
    config = {
        "seed": seed,
        "scheme": {"name": scheme, "strategy": {"code": {"n": 8, "k": 4, "t": 2}}},
        "target": {"metric": "val_acc", "mode": "max", "value": 0.9},
    }
    summary = {"result/val_acc": 0.95, "result/time_to_target_s": reached_s, "result/updates": 3}
    rows = []
    for update in (1, 2, 3):
        exchange = {"exchange/update_s": 0.5, "exchange/bytes_up": 100, "exchange/bytes_down": 50}
        rows += [exchange, {"val_acc": 0.3 * update + 0.01}, {"val_wall_s": reached_s * update / 3}]
        for row in rows[-3:]:
            row["trainer/global_step"] = update
    history = [{"_step": step, **row} for step, row in enumerate(rows)]
    return {"name": name, "state": state, "config": config, "summary": summary, "history": history}


def test_a_projects_runs_become_a_table_and_a_report(tmp_path):
    runs = [online_run(f"{scheme}{seed}", scheme, seed, 3.0 + seed) for scheme in ("lwpd", "local") for seed in (0, 1)]
    for run_of_sweep in runs[2:]:  # W&B's own, which has chosen the scheme
        run_of_sweep["config"]["scheme"] = "local"
    runs.append(online_run("lost", "lwpd", 2, 9.0, state="crashed"))
    with serving(runs) as server:
        command = [sys.executable, "-m", "experiments.compare", "--online", "team/project", "--report", "--out", "out"]
        done = run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), **server.environment})

    assert done.returncode == 0, done.stderr
    assert "4 runs in 2 groups; target val_acc >= 0.9" in done.stdout
    assert "Left out: 1 of the runs: lost (unfinished)." in done.stdout
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert set(lines) == {f"team/project/{scheme}{seed}" for scheme in ("lwpd", "local") for seed in (0, 1)}
    assert [lines["team/project/local1"][f"{axis}_to_target"] for axis in ("wall", "bytes", "updates")] == [
        "4", "450", "3",
    ]  # fmt: skip
    (report,) = server.reports
    assert (report["entityName"], report["projectName"], report["type"]) == ("team", "project", "runs")
    assert "| lwpd | 2 | 0.95 (0.95..0.95) |" in report["spec"]
    assert re.search(rf"^{server.address}/team/project/reports/\S+$", done.stdout, re.MULTILINE)


def test_a_project_that_cannot_be_read_is_one_sentence(tmp_path):
    with serving([]) as server:
        server.answer = lambda query, given: {}  # whose key is it?
        command = [sys.executable, "-m", "experiments.compare", "--online", "team/project", "--out", "out"]
        done = run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), **server.environment})

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("--online team/project cannot be read: ")
    assert "Traceback" not in done.stderr
