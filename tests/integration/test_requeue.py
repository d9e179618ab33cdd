"""What Slurm says to a job, said to ranks that were started as its tasks are; `test_slurm` has the real one."""

import os
import signal
from contextlib import ExitStack

import pytest
import torch

from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.integration.test_several_machines import JOB, common, free_port

TASKS = {
    "SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost",
}  # fmt: skip
PAIR = ("--uncoded", "--workers", "2", "--wait-for", "2")


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Slurm's command, which notes what it was told: path of the note."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "told"


def tasks(stack, cwd, *words, **added):
    environment = {**common(free_port()), **TASKS, **added}
    return [
        stack.enter_context(
            ForkedJob([*JOB, *PAIR, *words], cwd=cwd, env={**environment, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        )
        for rank in ("0", "1")
    ]


def ended(ranks):
    results = [rank.wait(PATIENCE_S) for rank in ranks]
    for rank in ranks:
        rank.wait_until_nothing_is_left(ENDING_S)
    return results


@pytest.mark.slow
# In mid-epoch, and at its end, from which Lightning would go on with one batch too many.
@pytest.mark.parametrize(("update", "saves"), [(14, 14), (20, 21)])
def test_a_run_that_is_told_between_a_step_and_its_count_goes_on_with_the_same_bits(tmp_path, scontrol, update, saves):
    with ExitStack() as stack:
        ranks = tasks(stack, tmp_path, "--tell-at", str(update), "--tell", "kill -USR1 $PPID")
        ranks[0].wait_for_output(f"UPDATE {update + 5}\n", PATIENCE_S)
        assert scontrol.read_text() == "requeue 41\n"
        for rank in ranks:
            rank.interrupt(signal.SIGTERM)
        first = ended(ranks)
        # A rank that has heard from rank 0 that it is over, and has no fit any more, is ended by the signal itself.
        assert first[0].exit_code == 143, first
        assert first[1].exit_code in (143, -signal.SIGTERM), first
        assert "Traceback" not in first[0].output + first[1].output
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == saves

    norms = []
    for directory in (tmp_path, tmp_path / "bin"):  # the second holds no checkpoint
        with ExitStack() as stack:
            results = ended(tasks(stack, directory, "--updates", "40"))
            assert [result.exit_code for result in results] == [0, 0], results
            assert (f"UPDATE {update}\n" in results[0].output) == (directory != tmp_path)
            norms.append({result.output.rsplit("DONE ", 1)[1] for result in results})
    assert len(norms[0] | norms[1]) == 1


@pytest.mark.slow
def test_a_worker_leaves_the_signal_to_rank_0(tmp_path, scontrol):
    with ExitStack() as stack:
        ranks = tasks(stack, tmp_path)
        ranks[0].wait_for_output("UPDATE 10\n", PATIENCE_S)
        ranks[1].kill(signum=signal.SIGUSR1)
        ranks[1].kill(signum=signal.SIGTERM)
        at = int(ranks[0].output.rsplit("UPDATE ", 1)[1].split()[0])
        ranks[0].wait_for_output(f"UPDATE {at + 20}\n", PATIENCE_S)
        assert "SAVES" not in ranks[1].output
        assert not scontrol.exists()
        assert "is lost" not in ranks[0].output


def test_tasks_that_are_not_the_ranks_are_refused_with_a_sentence(tmp_path):
    env = {**common(free_port()), **TASKS, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    del env["SLURM_NTASKS_PER_NODE"]
    with ForkedJob([*JOB, *PAIR], cwd=tmp_path, env=env) as job:
        result = job.wait(PATIENCE_S)
    assert result.exit_code == 1
    assert "Slurm started 1 tasks (SLURM_NTASKS) and the Trainer has 2 ranks" in result.output
    assert "SLURM_JOB_NAME=interactive" in result.output
