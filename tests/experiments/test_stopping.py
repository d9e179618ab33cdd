"""Ctrl-C and SIGTERM: what the run says, what it leaves, and that its own words continue it."""

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
from lightning import Callback

from experiments.stopping import speaks_for_the_run
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = ("code=lwpd_4_2_2", "model.hidden=[16]", "logger=csv", "trainer.max_epochs=100000", "hydra.run.dir='a=b'")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
SPEAKS = "+callbacks.speaks._target_=tests.experiments.test_stopping.Speaks"


class Speaks(Callback):
    on_workers = False

    def on_train_batch_end(self, trainer, *args):
        if trainer.is_global_zero:
            print(f"update {trainer.global_step}", flush=True)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "experiments.train", *words]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("scheme", ["lwpd", "ddp"])
def test_a_stopped_run_says_how_to_continue_it(tmp_path, signum, scheme):
    words = (*RUN, f"scheme={scheme}", SPEAKS)
    with ForkedJob(command(*words), cwd=tmp_path, env=ENVIRONMENT) as job:
        job.wait_for_output("update 15\n", PATIENCE_S)
        job.interrupt(signum)
        result = job.wait(ENDING_S)
        job.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 128 + signum
    assert "Traceback" not in result.output
    assert "Received SIGTERM" not in result.output
    assert json.loads((tmp_path / "a=b/live.json").read_text())["ended"] == signum.name
    line = result.output.splitlines()[-1]
    said, again = line.split("; to continue: ")
    updates, holds = (int(word) for word in said.split() if word.isdigit())
    assert line.startswith(f"{signum.name} after {updates} updates; a=b/checkpoints/last.ckpt holds {holds} of them")
    # All of the coded run; where ranks meet in collectives, what the last epoch's validation kept.
    assert updates >= 15
    assert holds == (updates if scheme == "lwpd" else updates // 11 * 11)
    assert shlex.split(again) == [
        sys.executable,
        "-m",
        "experiments.train",
        *words,
        "ckpt_path='a=b/checkpoints/last.ckpt'",
    ]

    more = [f"trainer.max_steps={updates + 2}", "hydra.run.dir=next"]
    done = run([sys.executable, *shlex.split(again)[1:], *more], cwd=tmp_path, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    assert f"update {holds + 1}\n" in done.stdout
    assert f"update {holds}\n" not in done.stdout
    assert f"update {updates + 2}\n" in done.stdout
    assert (tmp_path / "next/summary.json").is_file()


def test_a_run_without_a_checkpoint_says_how_to_start_again(tmp_path):
    words = (*RUN, SPEAKS, "callbacks.last=null")
    with ForkedJob(command(*words), cwd=tmp_path, env=ENVIRONMENT) as job:
        job.wait_for_output("update 1\n", PATIENCE_S)
        job.kill(signum=signal.SIGTERM)
        result = job.wait(ENDING_S)
        job.wait_until_nothing_is_left(ENDING_S)

    assert result.exit_code == 143
    said, again = result.output.splitlines()[-1].split("; to start again: ")
    assert said.endswith("of which no checkpoint was kept")
    assert shlex.split(again)[1:] == ["-m", "experiments.train", *words]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_one_rank_speaks_for_a_run_whoever_started_it(monkeypatch, name):
    assert speaks_for_the_run()
    monkeypatch.setenv(name, "0")
    assert speaks_for_the_run()
    monkeypatch.setenv(name, "1")
    assert not speaks_for_the_run()
