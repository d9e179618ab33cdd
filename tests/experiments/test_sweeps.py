"""Sweeps as a user starts them: real launchers, real jobs with real workers, real signals."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.typed import options_first
from lwpd_lightning.testing import Job
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob, run
from tests.experiments.offline_runs import records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHORT = ("trainer.max_steps=2", "model.hidden=[16]")
ENDLESS = ("code=lwpd_4_2_2", "trainer.max_steps=-1", "trainer.max_epochs=100000", "logger=csv")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = ("hydra/launcher=submitit_local",)
# Slurm's words for a job of one task, which starts its workers itself.
SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7",
         "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}  # fmt: skip


def sweep(directory: Path, *overrides: str, **environment: str) -> Job:
    placed = any(word.startswith(("hydra.sweep.dir=", "sweep.resume=")) for word in overrides)
    command = [sys.executable, "-m", "experiments.train", *overrides, *(() if placed else ("hydra.sweep.dir=sweep",))]
    return ForkedJob(command, cwd=directory, env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment})


def documents(directory: Path, name: str) -> dict[int, dict[str, Any]]:
    return {int(path.parent.name): json.loads(path.read_text()) for path in (directory / "sweep").glob(f"*/{name}")}


def summaries(directory: Path) -> dict[int, dict[str, Any]]:
    return documents(directory, "summary.json")


def failures(directory: Path) -> dict[int, str]:
    return {number: failure["sentence"] for number, failure in documents(directory, "failure.json").items()}


def test_the_number_of_processes_changes_between_jobs(tmp_path):
    grid = ("code=lwpd_4_2_2,lwpd_8_4_2", "scheme=k_async", "straggler=none", "seed=0", "logger=csv")
    with sweep(tmp_path, "sweep=schemes_under_stragglers", *SHORT, *grid) as running:
        result = running.wait(PATIENCE_S)
        running.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 0, result.output
    assert "2 of 2 jobs finished" in result.output
    found = {(s["world_size"], s["scheme"], s["updates"]) for s in summaries(tmp_path).values()}
    assert found == {(size, "k_async", 2) for size in (4, 8)}
    for number, summary in summaries(tmp_path).items():
        assert f"code=lwpd_{summary['world_size']}_" in " ".join(summary["overrides"])
        assert f"scheme={summary['scheme']}" in summary["overrides"]
        assert len(summary["inclusion_rate"]) == summary["world_size"]
        assert (tmp_path / f"sweep/{number}/csv/metrics.csv").is_file()


def test_refused_jobs_fail_alone_and_are_told_at_the_end(tmp_path):
    sizes = ("code=lwpd_4_2_2", "code.t=2,3", "logger=csv")
    with sweep(tmp_path, "-m", *SHORT, *sizes, *SUBMITIT, **SLURM) as running:
        result = running.wait(PATIENCE_S)
        running.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 1, result.output
    assert {number: summary["world_size"] for number, summary in summaries(tmp_path).items()} == {0: 4}
    report = result.output[result.output.index("1 of 2 jobs finished") :]
    common = " ".join(SHORT)
    assert f"job 1 ({common} code=lwpd_4_2_2 code.t=3 logger=csv): t=3 does not divide k=2" in report
    assert failures(tmp_path).keys() == {1}


def test_losing_all_workers_of_a_job_leaves_the_others_right(tmp_path):
    deaths = "+callbacks.faults={_target_: lwpd_lightning.injection.FaultInjector, kills: {1: 3, 2: 3, 3: 3}}"
    with sweep(tmp_path, "-m", *SHORT, "code=lwpd_4_2_2,lwpd_8_4_2", "trainer.max_steps=20", deaths) as running:
        result = running.wait(PATIENCE_S)
        running.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 1, result.output
    assert "TooFewWorkers" in failures(tmp_path).pop(0)
    (survived,) = summaries(tmp_path).values()
    assert (survived["world_size"], survived["updates"]) == (8, 20)
    assert sorted(lost["worker"] for lost in survived["failures"]) == [1, 2, 3]
    runs = [records(next((tmp_path / "sweep").glob(f"{number}/wandb/offline-run-*"))) for number in (0, 1)]
    assert [run["exit"][-1]["exit_code"] for run in runs] == [1, 0]
    assert [run["run"][0]["run_group"] for run in runs] == ["sweep", "sweep"]
    assert runs[0]["run"][0]["run_id"] != runs[1]["run"][0]["run_id"]


def test_what_has_not_finished_is_repeated_on_request(tmp_path):
    sweeps = "outputs/train/sweeps"
    changing = tmp_path / "own/experiment/changing.yaml"
    changing.parent.mkdir(parents=True)
    words = (
        "-m",
        "--config-dir=own",
        "experiment=changing",
        "code=lwpd_4_2_2",
        "trainer.max_epochs=100000,1",
        "logger=csv",
    )
    changing.write_text("# @package _global_\ntrainer:\n  max_steps: -1\n")
    directory = f"hydra.sweep.dir={sweeps}/sweep"
    with sweep(tmp_path, *words, directory) as running:
        running.kill(parent(rank(running, 1)))
        result = running.wait(PATIENCE_S)
        running.wait_until_nothing_is_left(ENDING_S)
    assert result.exit_code == 1
    assert failures(tmp_path / sweeps) == {0: "rank 0 was killed by SIGKILL"}
    assert {number: summary["updates"] for number, summary in summaries(tmp_path / sweeps).items()} == {1: 11}
    assert "trainer.max_epochs=100000 " in result.output.splitlines()[-2]
    again = shlex.split(result.output.splitlines()[-1].removeprefix("To repeat only what has not finished: "))

    record = tmp_path / sweeps / "sweep/multirun.yaml"
    other = tmp_path / sweeps / "newer/multirun.yaml"
    other.parent.mkdir()
    other.write_text(record.read_text().replace("code=lwpd_4_2_2", "code=lwpd_8_4_2"))

    changing.write_text("# @package _global_\ntrainer:\n  max_steps: 2\n")
    assert again == [sys.executable, "-m", "experiments.train", *options_first(words), directory, "sweep.resume=true"]
    with sweep(tmp_path, *words, "sweep.resume=true") as running:
        result = running.wait(PATIENCE_S)

    assert result.exit_code == 0, result.output
    assert f"continuing the sweep in {sweeps}/sweep" in result.output
    assert "job 1 is finished" in result.output
    assert failures(tmp_path / sweeps) == {}
    assert {number: summary["updates"] for number, summary in summaries(tmp_path / sweeps).items()} == {0: 2, 1: 11}


@pytest.mark.parametrize(("launcher", "end"), [((), "interrupt"), ((), "kill"), (SUBMITIT, "interrupt")])
def test_a_sweep_that_is_ended_leaves_nothing(tmp_path, launcher, end):
    with sweep(tmp_path, "-m", *ENDLESS, *launcher) as running:
        rank(running, 3)
        getattr(running, end)()
        assert running.wait(ENDING_S).exit_code != 0
        running.wait_until_nothing_is_left(ENDING_S)

    assert summaries(tmp_path) == {}


def test_of_jobs_beside_each_other_one_finishes_and_ctrl_c_ends_the_other(tmp_path):
    words = ("code=lwpd_4_2_2", "trainer.max_steps=2,-1", "trainer.max_epochs=100000", "logger=csv")
    with sweep(tmp_path, "-m", *words, *JOBLIB) as running:
        deadline = time.monotonic() + PATIENCE_S
        while not summaries(tmp_path) and running.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        rank(running, 3)
        running.interrupt()
        assert running.wait(ENDING_S).exit_code != 0
        running.wait_until_nothing_is_left(ENDING_S)

    assert {number: summary["updates"] for number, summary in summaries(tmp_path).items()} == {0: 2}


def test_a_resume_without_a_sweep_to_resume_is_one_sentence(tmp_path):
    alone = train(tmp_path, "sweep.resume=true")
    nothing = train(tmp_path, "-m", "seed=0,1", "sweep.resume=true")

    assert alone.returncode == nothing.returncode == 1
    assert "sweep.resume=true continues a sweep, and this is a single run: add -m." in alone.stderr
    assert "sweep.resume=true: there is no sweep of the same overrides in outputs/train/sweeps" in nothing.stderr
    assert "Traceback" not in alone.stderr + nothing.stderr


def train(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.train", *overrides]
    return run(command, cwd=directory, env={"PYTHONPATH": str(ROOT)})


def rank(running: Job, number: int) -> int:
    """Pid of a worker, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while running.processes() and time.monotonic() < deadline:
        try:
            return running.rank(number)
        except KeyError:
            time.sleep(0.1)
    raise AssertionError(running.output)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
