"""`resume=auto` and `restarts=N`: runs are killed at any moment, and end with the weights of one that was not."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback

from experiments.checkpoints import BEFORE, LAST, RECENT
from experiments.comparison.find import local_runs
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.experiments.test_train_command import train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
UPDATES = 66  # six epochs of 11
# LWPD_KILLS=20 for more of them.
KILLS = int(os.environ.get("LWPD_KILLS", "5"))
RUN = (
    "code=lwpd_4_2_2", "code.wait_for=4", "model.hidden=[16]", "logger=csv", "trainer.max_epochs=6",
    "callbacks.recent.every_s=0",
)  # fmt: skip
KILLS_AT = "+callbacks.kills._target_=tests.experiments.test_resuming.Kills"


class Kills(Callback):
    """Kills the process that trains at an update, before (0) or after its batch; once, where ``once`` names a file."""

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
@pytest.mark.parametrize("scheme", ["lwpd", "whitened", "local", "sync"])
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(tmp_path, scheme):
    words = (*RUN, f"scheme={scheme}")
    chance = random.Random(f"killed {scheme}")
    whole = train(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr

    killed = 0
    for at in sorted(chance.randrange(2, UPDATES - 1) for _ in range(KILLS)):
        with job(tmp_path, *words, KILLS_AT, "+callbacks.kills.update=-1", *AUTO) as running:
            # All of it at once, as when a machine dies: wherever its processes are by then.
            try:
                running.wait_for_output(f"update {at}\n", PATIENCE_S)
            except AssertionError:
                assert running.wait(ENDING_S).exit_code == 0, running.output
                break  # it was through before it was seen to be there
            for pid in running.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            result = running.wait(ENDING_S)
            running.wait_until_nothing_is_left(ENDING_S)
        killed += result.exit_code == -signal.SIGKILL
        assert any((tmp_path / "run/checkpoints" / name).is_file() for name in (LAST, RECENT, BEFORE))
    done = train(tmp_path, *words, KILLS_AT, "+callbacks.kills.update=-1", *AUTO)

    assert done.returncode == 0, done.stderr
    assert killed
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["updates"] == UPDATES
    assert summary["resumed_at_update"] > 0
    assert summary["resumed_from"] == str(tmp_path / "run")


AUTO = ("hydra.run.dir=run", "resume=auto")
