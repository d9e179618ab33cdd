"""`last.ckpt` is the end of the run, and a run that is continued from it trains what an unbroken one does."""

from pathlib import Path

import pytest
import torch

from tests.experiments.test_train_command import train

pytestmark = pytest.mark.slow
# K = n: the numbers do not depend on who is ready first. 1437 samples are 11 updates an epoch.
RUN = ("code=lwpd_4_2_2", "code.wait_for=4", "model.hidden=[16]", "logger=csv", "model.schedule=null")


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("end", "go_on"),
    [
        (("trainer.max_steps=15",), ("trainer.max_steps=24",)),  # in mid-epoch
        (("trainer.max_epochs=2",), ("trainer.max_epochs=3",)),
        (("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=3"), ("trainer.max_epochs=3",)),  # never validated
    ],
)
def test_a_run_continued_from_the_last_checkpoint_is_as_an_unbroken_one(tmp_path, end, go_on):
    # A metric that gets worse: the best state is the first.
    worse = ("target.mode=max", "target.metric=val_loss", "target.value=100")
    first = train(tmp_path, *RUN, *worse, *end, "hydra.run.dir=first")
    second = train(tmp_path, *RUN, *go_on, "hydra.run.dir=second", "ckpt_path=first/checkpoints/last.ckpt")
    whole = train(tmp_path, *RUN, *go_on, "hydra.run.dir=whole")

    assert [done.returncode for done in (first, second, whole)] == [0, 0, 0], first.stderr + second.stderr
    assert last(tmp_path / "first")["global_step"] == (15 if "max_steps" in end[0] else 22)
    kept = {"best.ckpt", "last.ckpt", "recent.ckpt", "recent_before.ckpt"}
    assert {path.name for path in (tmp_path / "first/checkpoints").iterdir()} <= kept
    found, expected = last(tmp_path / "second"), last(tmp_path / "whole")
    assert found["global_step"] == expected["global_step"] == (24 if "max_steps" in go_on[0] else 33)
    for name, weights in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weights)


@pytest.mark.parametrize("scheme", ["lwpd", "ddp"])
def test_recent_states_are_kept_by_rank_0s_clock(tmp_path, scheme):
    words = (*RUN, f"scheme={scheme}", "callbacks.recent.every_s=0", "trainer.max_steps=40", "hydra.run.dir=run")

    done = train(tmp_path, *words)  # which hung, where other ranks had clocks of their own

    assert done.returncode == 0, done.stderr
    files = (tmp_path / f"run/checkpoints/{name}.ckpt" for name in ("recent", "recent_before"))
    recent, before = (torch.load(file, weights_only=True) for file in files)
    assert 0 < before["global_step"] < recent["global_step"] < 40
