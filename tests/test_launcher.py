"""Starting workers, and how they end."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from lwpd_lightning.launcher import fork_workers, rerun_workers


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: None, "exited with code 0"),
        (lambda: os._exit(7), "exited with code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 5), f"was killed by signal {signal.SIGRTMIN + 5}"),
    ],
)
def test_how_a_worker_ended_is_told(end, said):
    workers = fork_workers([1], lambda rank: end())
    assert workers.exited(1, wait_s=20) == said
    assert workers.exited(2, wait_s=20) is None
    workers.end()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing says it")
def test_that_a_process_has_begun_to_end_is_known_and_a_stopped_one_has_not():
    workers = fork_workers([1], lambda rank: time.sleep(600))
    (process,) = workers.processes
    os.kill(process.pid, signal.SIGSTOP)
    assert not workers.ending(1)
    assert not workers.ending(2)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not workers.ending(1):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert workers.exited(1, wait_s=20) == "was killed by SIGKILL"
    workers.end()


def test_where_no_rank_is_to_be_run_again_no_command_is_needed(monkeypatch):
    """One rank on each machine, from a notebook say."""
    monkeypatch.setattr(sys, "argv", [""])
    assert rerun_workers(range(0), lambda rank: {}).processes == []
    with pytest.raises(ValueError, match="interactive session"):
        rerun_workers(range(1), lambda rank: {})


def test_a_worker_computes_on_the_threads_that_were_set_from_its_first_forward_on():
    """Not on one for each core, of which all but one wait, busily."""
    layer, batch = torch.nn.Linear(64, 64), torch.randn(64, 64)
    threads = torch.get_num_threads()

    def computes(rank):
        before = len(os.listdir("/proc/self/task"))
        layer(batch)
        os._exit(len(os.listdir("/proc/self/task")) - before)

    torch.set_num_threads(1)
    workers = fork_workers([1], computes)
    torch.set_num_threads(threads)
    assert workers.exited(1, wait_s=20) == "exited with code 0"
    workers.end()


def test_a_daemonic_process_forks_workers_which_end_with_it():
    """As a pool's processes are, in which a search over hyperparameters trains."""
    context = multiprocessing.get_context("fork")
    pids = context.Queue()

    def trains():
        workers = fork_workers(
            [1, 2], lambda rank: pids.put((rank, os.getpid(), multiprocessing.current_process().daemon))
        )
        assert [workers.exited(rank, wait_s=20) for rank in (1, 2)] == ["exited with code 0"] * 2
        assert multiprocessing.current_process().daemon
        fork_workers([3], lambda rank: (pids.put((rank, os.getpid(), None)), time.sleep(600)))
        time.sleep(600)

    process = context.Process(target=trains, daemon=True)
    process.start()
    told = {rank: rest for rank, *rest in (pids.get(timeout=20) for _ in range(3))}
    assert told[1][1] is told[2][1] is False  # so that they may have processes that load data
    last = told[3][0]
    assert _lives(last)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    deadline = time.monotonic() + 20
    while _lives(last):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False
