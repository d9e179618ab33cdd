"""`resume=auto` and `restarts=N`: runs are killed at any moment, and end with the weights of one that was not."""

import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import CompactHydraException
from lightning import Callback
from omegaconf import OmegaConf

from experiments.checkpoints import BEFORE, LAST, RECENT
from experiments.comparison.find import local_runs
from experiments.restarting import restarts_of
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.experiments.test_train_command import train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
UPDATES = 66  # six epochs of 11
# LWPD_KILLS=20 for more of them.
KILLS = int(os.environ.get("LWPD_KILLS", "2"))
RUN = (
    "code=lwpd_4_2_2", "code.wait_for=4", "model.hidden=[16]", "logger=csv", "trainer.max_epochs=6",
    "callbacks.recent.every_s=0",
)  # fmt: skip
AUTO = ("hydra.run.dir=run", "resume=auto")
KILLS_AT = "+callbacks.kills._target_=tests.experiments.test_resuming.Kills"


class Kills(Callback):
    """Kills the process that trains at an update, after its batch or before; once, where ``once`` names a file."""

    on_workers = False

    def __init__(self, update: int, after: bool = True, once: str | None = None, signum: int = signal.SIGKILL) -> None:
        self.update, self.after, self.once, self.signum = update, after, once, signum

    def on_train_batch_start(self, trainer, *args):
        self._die(trainer, False)

    def on_train_batch_end(self, trainer, *args):
        print(f"update {trainer.global_step}", flush=True)
        self._die(trainer, True)

    def _die(self, trainer, after):
        if trainer.global_step != self.update or after != self.after or not trainer.is_global_zero:
            return
        if self.once is not None:
            try:
                Path(self.once).touch(exist_ok=False)
            except FileExistsError:
                return
        os.kill(os.getpid(), self.signum)


def job(directory: Path, *words: str) -> ForkedJob:
    return ForkedJob([sys.executable, "-m", "experiments.train", *words], cwd=directory, env=ENVIRONMENT)


def last(run: Path, name: str = LAST) -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def same_weights(one: Path, other: Path) -> bool:
    found, expected = last(one)["state_dict"], last(other)["state_dict"]
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.timeout(PATIENCE_S * (2 + KILLS))
@pytest.mark.parametrize("scheme", ["lwpd", "whitened", "local", "k_async_int8", "sketch"])
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(tmp_path, scheme):
    updates = 11 * (KILLS + 1)
    words = (*RUN, f"scheme={scheme}", f"trainer.max_epochs={KILLS + 1}")
    talks = (KILLS_AT, "+callbacks.kills.update=-1")
    whole = train(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr

    chance = random.Random(f"killed {scheme}")
    for at in sorted(chance.sample(range(1, updates - 11), KILLS)):
        with job(tmp_path, *words, *talks, *AUTO) as running:
            # All of it at once, as when a machine dies: wherever its processes are by then.
            running._until(lambda at=at, running=running: reached(running) >= at, PATIENCE_S)
            for pid in running.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert running.wait(ENDING_S).exit_code == -signal.SIGKILL
            running.wait_until_nothing_is_left(ENDING_S)
    done = train(tmp_path, *words, *talks, *AUTO)

    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["updates"] == updates
    assert summary["resumed_at_update"] > 0
    assert summary["resumed_from"] == str(tmp_path / "run")


def reached(running: ForkedJob) -> int:
    return max((int(line.split()[1]) for line in running.output.splitlines() if line.startswith("update ")), default=0)


class Breaks(Callback):
    on_workers = False

    def __init__(self, lost: bool) -> None:
        self.error = ConnectionError("the cable is out") if lost else ZeroDivisionError("a defect")

    def on_train_batch_end(self, trainer, *args):
        if trainer.is_global_zero and trainer.global_step == 5:
            raise self.error


BREAKS = "+callbacks.breaks._target_=tests.experiments.test_resuming.Breaks"


def test_a_killed_run_is_started_again_and_ends_as_one_that_was_not(tmp_path):
    once = (KILLS_AT, "+callbacks.kills.update=20", f"+callbacks.kills.once={tmp_path / 'killed'}")
    killed = train(tmp_path, *RUN, *once, "hydra.run.dir=killed_once", "restarts=1")
    assert killed.returncode == 0, killed.stderr
    unbroken = train(tmp_path, *RUN, "hydra.run.dir=whole")
    assert unbroken.returncode == 0, unbroken.stderr

    assert "The run was killed by SIGKILL; it is started again in 1 s, 1 of 1 restarts are left." in killed.stderr
    assert same_weights(tmp_path / "killed_once", tmp_path / "whole")
    summary = json.loads((tmp_path / "killed_once/summary.json").read_text())
    assert summary["updates"] == UPDATES
    assert 11 <= summary["resumed_at_update"] < 20  # what was being written when it was killed is lost
    runs, left_out = local_runs([tmp_path])
    assert (len(runs), left_out) == (2, [])


def test_a_run_that_dies_each_time_ends_with_the_signals_code(tmp_path):
    words = (*RUN, KILLS_AT, "+callbacks.kills.update=1", "+callbacks.kills.after=false", "restarts=1")
    with job(tmp_path, *words, "callbacks.recent=null", "hydra.run.dir=run") as running:
        result = running.wait(PATIENCE_S)
        running.wait_until_nothing_is_left(ENDING_S)
    assert result.exit_code == 128 + signal.SIGKILL
    assert result.output.count("it is started again") == 1


@pytest.mark.parametrize("lost", [True, False])
def test_what_was_lost_is_tried_again_and_a_defect_is_not(tmp_path, lost):
    words = (*RUN, BREAKS, f"+callbacks.breaks.lost={lost}", "restarts=1", "hydra.run.dir=run")
    done = train(tmp_path, *words, "callbacks.recent=null")
    assert done.returncode == 1
    again = "The run ended (ConnectionError: the cable is out); it is started again in 1 s"
    assert done.stderr.count(again) == done.stderr.count("it is started again") == lost


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_is_not_started_again(tmp_path, signum):
    words = (*RUN, KILLS_AT, "+callbacks.kills.update=-1", "trainer.max_epochs=100000", "restarts=3")
    with job(tmp_path, *words) as running:
        running.wait_for_output("update 5\n", PATIENCE_S)
        running.interrupt(signum)
        result = running.wait(ENDING_S)
        running.wait_until_nothing_is_left(ENDING_S)
    assert result.exit_code == 128 + signum
    assert "started again" not in result.output
    assert "Traceback" not in result.output
    line = result.output.splitlines()[-1]
    assert line.startswith(signum.name)
    assert f"to continue: {sys.executable} -m experiments.train {words[0]}" in line
    assert "hydra.mode" not in line


def test_nothing_is_left_of_a_run_whose_starter_is_killed(tmp_path):
    with job(tmp_path, *RUN, KILLS_AT, "+callbacks.kills.update=-1", "trainer.max_epochs=100000", "restarts=3") as run:
        run.wait_for_output("update 5\n", PATIENCE_S)
        run.kill()
        run.wait(ENDING_S)
        run.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["restarts=-1"], "restarts=-1 is no number of restarts: use 0, 1, 2 or more."),
        (["restarts=true"], "restarts=true is no number of restarts"),
        (["resume=true", "hydra.run.dir=run"], "resume=true is unknown: use resume=auto, or leave it out."),
        (["resume=auto"], "resume=auto needs a directory that is the same each time: add hydra.run.dir="),
        (["callbacks.recent.every_s=-1"], "callbacks.recent.every_s=-1 is negative"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(tmp_path, words, sentence):
    done = train(tmp_path, *RUN[:-1], *words)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence), done.stderr


@pytest.mark.parametrize(("tasks", "refused"), [("1", False), ("4", True)])
def test_restarts_are_refused_where_slurm_starts_the_ranks(monkeypatch, tasks, refused):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    if refused:
        with pytest.raises(CompactHydraException, match=r"SLURM_PROCID says that .* scontrol requeue"):
            restarts_of(OmegaConf.create({"restarts": 3}))
    else:
        assert restarts_of(OmegaConf.create({"restarts": 3})) == 3


def test_checkpoints_of_another_configuration_are_refused_and_a_broken_one_is_left_out(tmp_path):
    words = (*RUN, *AUTO)
    assert train(tmp_path, *words, "trainer.max_steps=5").returncode == 0
    other = train(tmp_path, *words, "trainer.max_steps=5", "seed=1")
    assert other.returncode == 1
    assert "is of another configuration (seed: 0 there, 1 here)" in other.stderr

    folder = tmp_path / "run/checkpoints"
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:1000])
    done = train(tmp_path, *words, "trainer.max_steps=5")
    assert done.returncode == 0, done.stderr
    # From the newest that was written beside training, which a busy machine does not do at every update.
    assert 0 < json.loads((tmp_path / "run/summary.json").read_text())["resumed_at_update"] < 5
    for name in (LAST, RECENT, BEFORE):
        (folder / name).write_bytes(b"")
    done = train(tmp_path, *words, "trainer.max_steps=5")
    assert "can be read" in done.stderr
    assert done.returncode == 1
