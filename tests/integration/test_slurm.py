"""A real Slurm on one machine: docs/slurm.md's scripts train, lose ranks, are requeued and cancelled."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback

from experiments.checkpoints import LAST, RECENT
from experiments.resuming import RESUMED
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.experiments.test_resuming import RUN, same_weights
from tests.experiments.test_train_command import train
from tests.integration.slurm import CannotStart, Slurm, not_here

# Each task is a real start, which takes as long as its imports.
pytestmark = [pytest.mark.slow, pytest.mark.real_start, pytest.mark.timeout(4 * PATIENCE_S)]
ROOT = Path(__file__).parents[2]
JOB = [sys.executable, str(Path(__file__).parent / "job.py")]
TOLD = {20: "scontrol requeue $SLURM_JOB_ID", 40: "scancel --signal=TERM $SLURM_JOB_ID"}  # by update
HEADINGS = {"ranks": "One task a rank", "nodes": "One task a node"}
START_S = 2 * PATIENCE_S


@pytest.fixture(scope="module")
def slurm():
    reason = not_here()
    if reason is not None:
        pytest.skip(reason)
    try:
        with Slurm() as started:
            yield started
    except CannotStart as error:
        pytest.skip(str(error))


def script(way, command, before=""):
    """The one of the documentation with another command, told ``before`` it."""
    text = (ROOT / "docs" / "slurm.md").read_text().split(f"## {HEADINGS[way]}\n")[1]
    script = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    script, found = re.subn(r"python (train\.py|-m experiments\.train)[^\n]*", lambda match: command, script)
    assert found == 1
    added = f"export PYTHONPATH={ROOT} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1\n{before}\n"
    return script.replace("export LWPD_RUN_KEY", f"{added}export LWPD_RUN_KEY", 1)


def ranks(count, *words, before=""):
    """The script's text, and what else sbatch is told."""
    options = (f"--ntasks-per-node={count}", "--cpus-per-task=1")
    return script("ranks", shlex.join([*JOB, "--uncoded", f"--workers={count}", *words]), before), options


def updates(job):
    return max((int(found) for found in re.findall(r"^UPDATE (\d+)$", job.output, re.MULTILINE)), default=0)


def test_tasks_train_a_killed_one_is_an_erasure_and_scancel_leaves_nothing(slurm, tmp_path):
    text, options = ranks(4, "--wait-for=3")
    job = slurm.submit(text, tmp_path, *options)
    job.wait_for_output("UPDATE 10\n", START_S)
    assert "ARRIVED 4" in job.output
    os.kill(job.rank(2), signal.SIGKILL)
    job.wait_for_output("Worker 2 is lost", PATIENCE_S)
    at = updates(job)
    job.until(lambda: updates(job) >= at + 20, PATIENCE_S)
    assert job.state().startswith("RUNNING")

    slurm.run("scancel", "--signal=TERM", job.number)  # to tasks alone: the script says what became of them
    state = job.wait(ENDING_S)
    assert "task 0: Exited with exit code 143" in job.output
    assert state == "FAILED 137:0"  # the killed rank's
    assert job.output.count("is lost") == 1
    assert "Traceback" not in job.output


def test_a_job_that_is_told_its_time_is_over_is_requeued_and_goes_on_with_the_same_bits(slurm, tmp_path):
    # It learns how far to go from a file, once this test knows where it was told.
    before = 'if [ -n "$SLURM_RESTART_COUNT" ]; then until [ -f limit ]; do sleep 0.2; done; fi'
    text, options = ranks(2, "--wait-for=2", before=before)
    text = text.replace("--wait-for=2", "--wait-for=2 --updates $(cat limit || echo 1000000)")
    job = slurm.submit(text, tmp_path, *options)
    job.wait_for_output("UPDATE 10\n", START_S)
    slurm.run("scancel", "--signal=USR1", job.number)
    saved = tmp_path / "hpc_ckpt_1.ckpt"
    job.until(saved.exists, PATIENCE_S)
    told = torch.load(saved, weights_only=True)["global_step"]
    (tmp_path / "limit").write_text(str(told + 20))
    assert job.wait(START_S) == "COMPLETED 0:0"

    assert job.output.count("Handling auto-requeue signal") == 1
    assert f"UPDATE {told + 20}\n" in job.output

    other = tmp_path / "other"
    other.mkdir()
    text, options = ranks(2, "--wait-for=2", f"--updates={told + 20}")
    whole = slurm.submit(text, other, *options)
    assert whole.wait(START_S) == "COMPLETED 0:0"
    norms = [set(re.findall(r"DONE ([\d.]+)", run.output)) for run in (job, whole)]
    assert norms[0] == norms[1]
    assert len(norms[0]) == 1


def test_a_sweep_is_a_job_for_each_setting_and_one_whose_time_is_over_goes_on_as_often_as_it_may(slurm, tmp_path):
    page = (ROOT / "docs" / "sweeps.md").read_text()
    words = re.search(r"^    python (-m experiments\.train .*submitit_slurm.*)$", page, re.MULTILINE)[1].split()
    # Of submitit: no job of ten minutes is too young for its time to be over.
    limits = ("hydra.launcher.cpus_per_task=4", "hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=1")
    mine = (*limits, "hydra.sweep.dir=sweep")
    set_here = {"seed", *(word.partition("=")[0] for word in mine)}
    words = [word for word in words if word.partition("=")[0] not in set_here]
    sizes = (
        "code=lwpd_4_2_2",
        "model.hidden=[16]",
        "logger=csv",
        "trainer.max_epochs=100000",
        "trainer.max_steps=2,-1",
    )
    run, environment = tmp_path / "sweep" / "1", {**slurm._environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    live, resumed = run / "live.json", run / "checkpoints" / RESUMED

    def goes_on():
        if not resumed.exists() or live.stat().st_mtime < resumed.stat().st_ctime:  # of the time before
            return False
        return json.loads(live.read_text())["updates"] > torch.load(resumed, weights_only=True)["global_step"] > 0

    with ForkedJob([sys.executable, *words, *mine, *sizes], cwd=tmp_path, env=environment) as sweep:
        for condition in ((run / "checkpoints" / RECENT).exists, goes_on):
            until(condition, START_S, sweep)
            (job,) = (tmp_path / "sweep" / ".submitit").glob("*_1")
            slurm.run("scancel", "--signal=USR2", job.name)  # as Slurm does two minutes before the limit
        result = sweep.wait(START_S)

    assert result.exit_code == 1
    assert json.loads((tmp_path / "sweep/0/summary.json").read_text())["updates"] == 2
    assert "1 of 2 jobs finished" in result.output
    assert re.search(r"^job 1 \(.*max_steps=-1\): Job not requeued because: timed-out too", result.output, re.MULTILINE)
    assert "Traceback" not in result.output


def until(condition, timeout_s, job):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert job.processes(), f"it has ended:\n{job.output}"
        assert time.monotonic() < deadline, job.output
        time.sleep(0.2)


class Told(Callback):
    """Has the job that this runs in requeued, then told that its time is over, and awaits what Slurm does."""

    on_workers = False

    def on_train_batch_end(self, trainer, *args):
        command = TOLD.get(trainer.global_step)
        if command is not None:
            subprocess.run(command, shell=True, check=True)
            while not trainer.received_sigterm:
                time.sleep(0.05)


def test_a_requeued_run_that_starts_its_own_ranks_goes_on_with_the_same_bits(slurm, tmp_path):
    words = (*RUN, "scheme=lwpd", "callbacks.recent=null")
    mine = ("resume=auto", "hydra.run.dir=run", "+callbacks.told._target_=tests.integration.test_slurm.Told")
    text = script("nodes", shlex.join([sys.executable, "-m", "experiments.train", *words, *mine]))
    job = slurm.submit(text, tmp_path, "--cpus-per-task=4")
    assert job.wait(2 * START_S) == "COMPLETED 0:0"

    for update in TOLD:
        said = f"SIGTERM after {update} updates; run/checkpoints/last.ckpt holds {update} of them; to continue: "
        assert said in job.output
    assert "is lost" not in job.output
    whole = train(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert torch.load(tmp_path / "run/checkpoints" / LAST, weights_only=True)["global_step"] == 66
