"""A sweep that Ctrl-C or SIGTERM reaches: what it says, what its jobs keep, and that its own words continue it."""

import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from lightning import Callback

from lwpd_lightning.testing import Job
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
SPEAKS = "+callbacks.speaks._target_=tests.experiments.test_stopping_sweeps.Speaks"
WORDS = ("code=lwpd_4_2_2", "model.hidden=[16]", "logger=csv", "trainer.max_epochs=100000", SPEAKS)
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = ("hydra/launcher=submitit_local",)
HANGS_AT, ENDS_AT = "LWPD_HANGS_AT", "LWPD_ENDS_AT"


class Speaks(Callback):
    """Says where the run is, also in a file, and hangs or ends where the environment says so."""

    on_workers = False

    def on_train_batch_end(self, trainer, *args):
        if not trainer.is_global_zero:
            return
        print(f"update {trainer.global_step}", flush=True)
        Path(trainer.default_root_dir, "update").write_text(str(trainer.global_step))
        if trainer.global_step == int(os.environ.get(HANGS_AT, "-1")):
            threading.Event().wait()
        if trainer.global_step >= int(os.environ.get(ENDS_AT, "1000000")):
            trainer.should_stop = True


def sweep(directory: Path, *words: str, kind: type[Job] = ForkedJob, **environment: str) -> Job:
    command = [sys.executable, "-m", "experiments.train", "-m", "hydra.sweep.dir=sweep", *WORDS, *words]
    return kind(command, cwd=directory, env={**ENVIRONMENT, **environment})


def wait_for_update(running: Job, directory: Path, numbers: list[int], update: int) -> None:
    """Until all these jobs have made so many updates."""
    deadline = time.monotonic() + PATIENCE_S
    paths = [directory / f"sweep/{number}/update" for number in numbers]
    while not all(path.is_file() and int(path.read_text() or 0) >= update for path in paths):
        assert running.processes(), running.output
        assert time.monotonic() < deadline, running.output
        time.sleep(0.05)


def told(running: Job, directory: Path, signum: int) -> tuple[str, list[str]]:
    """The sweep's last line, as what it says and the command."""
    result = running.wait(ENDING_S)
    running.wait_until_nothing_is_left(ENDING_S)
    assert result.exit_code == 128 + signum, result.output
    assert "Traceback" not in result.output
    assert "CoordinatorLost" not in result.output
    said, again = result.output.splitlines()[-1].split("; to continue: ")
    assert again in result.output.splitlines()[-1]
    return said, shlex.split(again)


@pytest.mark.parametrize(
    ("launcher", "reach", "signum"),
    [
        ((), "interrupt", signal.SIGINT),
        ((), "kill", signal.SIGTERM),
        ((), "interrupt", signal.SIGTERM),
        (("restarts=1",), "interrupt", signal.SIGINT),
    ],
)
def test_a_job_that_runs_is_stopped_and_goes_on_and_another_is_not_begun(tmp_path, launcher, reach, signum):
    words = (*launcher, "trainer.max_steps=3,-1", "seed=8,9")
    with sweep(tmp_path, *words) as running:
        wait_for_update(running, tmp_path, [2], 15)
        getattr(running, reach)(signum=signum)
        said, again = told(running, tmp_path, signum)

    found = re.fullmatch(
        rf"{signum.name}: 2 of 4 jobs had finished; "
        r"stopped: job 2 \(trainer.max_steps=-1 seed=8\) after (\d+) updates, "
        r"sweep/2/checkpoints/last.ckpt holds (\d+) of them; not begun: job 3",
        said,
    )
    assert found, said
    updates, holds = map(int, found.groups())
    assert updates == holds >= 15
    assert not (tmp_path / "sweep/3/update").exists()
    typed = [sys.executable, "-m", "experiments.train", "-m", "hydra.sweep.dir=sweep", *WORDS, *words]
    assert again == [*typed, "sweep.resume=true"]

    done = run(again, cwd=tmp_path, env={**ENVIRONMENT, ENDS_AT: str(holds + 5)})

    assert done.returncode == 0, done.stderr
    assert "4 of 4 jobs finished" in done.stderr
    summaries = [json.loads((tmp_path / f"sweep/{number}/summary.json").read_text()) for number in range(4)]
    assert [one["updates"] for one in summaries] == [3, 3, holds + 5, holds + 5]
    assert [one["resumed_at_update"] for one in summaries[2:]] == [holds, None]
    # What it was to go on from is no setting of the job, which another resumption finds finished.
    assert "4 of 4 jobs finished" in run(again, cwd=tmp_path, env=ENVIRONMENT).stderr


@pytest.mark.parametrize(
    ("launcher", "reach", "signum"),
    [
        (JOBLIB, "interrupt", signal.SIGINT),
        (JOBLIB, "kill", signal.SIGTERM),
        (SUBMITIT, "kill", signal.SIGTERM),  # Ctrl-C ends its own processes, which wait for jobs
    ],
)
def test_jobs_beside_each_other_are_stopped_too(tmp_path, launcher, reach, signum):
    with sweep(tmp_path, *launcher, "seed=8,9") as running:
        wait_for_update(running, tmp_path, [0, 1], 15)
        getattr(running, reach)(signum=signum)
        said, _ = told(running, tmp_path, signum)

    stopped = "; ".join(
        rf"job {number} \(seed={8 + number}\) after \d+ updates, sweep/{number}/checkpoints/last.ckpt holds \d+ of them"
        for number in (0, 1)
    )
    assert re.fullmatch(rf"{signum.name}: 0 of 2 jobs had finished; stopped: {stopped}", said), said


def test_ctrl_c_again_ends_at_once(tmp_path):
    with sweep(tmp_path, "seed=8,9", **{HANGS_AT: "5"}) as running:
        wait_for_update(running, tmp_path, [0], 5)
        running.kill(signum=signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "sweep/.stopping/told").exists():
            assert time.monotonic() < deadline, running.output
            time.sleep(0.05)
        running.kill(signum=signal.SIGINT)
        result = running.wait(ENDING_S)
        running.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 130
    assert "SIGINT: 0 of 2 jobs had finished; stopped: job 0 (seed=8) was killed" in result.output


@pytest.mark.real_start
def test_a_job_that_still_imports_ends_without_a_traceback(tmp_path):
    with sweep(tmp_path, "seed=8,9", kind=Job) as running:
        running.wait_for_output("composing the jobs\n", PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "sweep/.stopping/0").exists() or len(running.processes()) < 2:
            assert time.monotonic() < deadline, running.output
            time.sleep(0.01)
        running.interrupt()
        said, _ = told(running, tmp_path, signal.SIGINT)

    assert "stopped: job 0 (seed=8) after 0 updates, no checkpoint was kept; not begun: job 1" in said


@pytest.mark.parametrize("launcher", [(), JOBLIB])
def test_what_a_job_prints_says_which_job_it_is(tmp_path, launcher):
    words = (*launcher, "seed=8,9", "trainer.max_steps=2", "callbacks.progress.line_every_s=0")
    with sweep(tmp_path, *words) as running:
        result = running.wait(PATIENCE_S)
    assert result.exit_code == 0, result.output

    lines = result.output.splitlines()
    for number, seed in ((0, 8), (1, 9)):
        label = f"job {number} (seed={seed}): "
        for what in ("loading torch", "scheme lwpd: ", "update 2/2, ", "what the code bought: "):
            assert [line for line in lines if line.startswith(f"{label}{what}")], what
        assert f"{label}files: {tmp_path / 'sweep' / str(number)}" in lines  # whole, however long
    assert not [line for line in lines if line.startswith(("scheme", "update 2/", "what the code"))]


@pytest.mark.real_start
def test_the_command_is_the_one_that_was_typed_though_python_is_not_on_the_path(tmp_path):
    python = os.path.relpath(sys.executable, tmp_path)
    words = ["-m", "experiments.train", *WORDS, "hydra.run.dir=a b"]
    with Job([python, *words], cwd=tmp_path, env={**ENVIRONMENT, "PATH": "/usr/bin:/bin"}) as running:
        running.wait_for_output("update 5\n", PATIENCE_S)
        running.interrupt()
        result = running.wait(ENDING_S)
    assert "Received SIGTERM" not in result.output
    line = result.output.splitlines()[-1]
    again = line.split("; to continue: ")[1]
    assert shlex.split(again)[: len(words) + 1] == [python, *words]

    environment = {**ENVIRONMENT, ENDS_AT: "1"}
    with Job(["sh", "-c", again], cwd=tmp_path, env=environment) as running:
        result = running.wait(PATIENCE_S)
    assert result.exit_code == 0, result.output
