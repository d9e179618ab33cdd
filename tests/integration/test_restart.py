"""A lost worker is started again, takes over rank 0's state, and counts again: real processes, real signals."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, schemes, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.exchange.update import WorkerFailed
from lwpd_lightning.worker_callback import WorkerCallback
from tests.commands import PATIENCE_S, ForkedJob
from tests.integration.models import Classifier, Until, adam, classification, loader, lost, quiet_trainer, sgd

JOB = [sys.executable, str(Path(__file__).parent / "job.py")]
ROOT = Path(__file__).parents[2]


class Once(WorkerCallback):
    """Something happens to worker 1, in its first life: until that ends, for what fetches may have fetched all."""

    def __init__(self, happens):
        self.happens, self.past = happens, multiprocessing.Value("q", 0)

    def on_codeword_start(self, trainer, worker, version):
        if worker == 1 and version >= 2 and self.past.value in (0, os.getpid()):
            self.past.value = os.getpid()
            self.happens()


def until_back(further=10):
    """Until a little after worker 1 was lost and has counted again."""

    def counts_again(trainer):
        counted = {arrival.worker for arrival in trainer.strategy.last_update.arrivals}
        return lost(1)(trainer) and 1 in counted

    return Until(counts_again, further)


def fit(strategy, *callbacks, devices=4, model=None, **loading):
    pl.seed_everything(1)
    monitor = ExchangeMonitor()
    trainer = quiet_trainer(
        devices=devices, strategy=strategy, max_steps=-1, max_epochs=-1, callbacks=[*callbacks, monitor]
    )
    # Epochs of a hundred updates: processes that load data are started anew in each.
    trainer.fit(model or Classifier(sgd), loader(classification(7200), shuffle=True, **loading))
    return trainer, monitor.summary()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fall_silent():
    os.kill(os.getpid(), signal.SIGSTOP)


def hang():
    threading.Event().wait()


def lose_a_fetcher():
    for child in multiprocessing.active_children():
        child.kill()


def run_out_of_memory():
    raise MemoryError("no more")


@pytest.mark.parametrize("wait_for", [pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (kill, "was killed by SIGKILL"),
        (fall_silent, "its link ended"),
        (hang, "it held an update up for 1 s"),
        (lose_a_fetcher, "a process of its DataLoader was killed"),
        (run_out_of_memory, "it ran out of memory"),
    ],
    ids=["killed", "silent", "hangs", "fetcher", "memory"],
)
def test_a_fork_is_replaced(happens, reason, wait_for):
    once, until = Once(happens), until_back()
    if happens is hang and wait_for == 3:
        pytest.skip("nobody waits for it")
    workers = {"num_workers": 1} if happens is lose_a_fetcher else {}
    # Bounds of a second only for whom they are to find: a worker asks every 5 s whether what fetches its batches lives.
    bounds = {fall_silent: {"heartbeat_s": 0.9}, hang: {"update_timeout_s": 1.0}}.get(happens, {})
    strategy = LWPDStrategy(code=uncoded(4), wait_for=wait_for, **bounds)
    trainer, summary = fit(strategy, once, until, **workers)
    assert trainer.global_step == until.seen_at + until.further
    (failure,) = summary["failures"]
    assert failure["worker"] == 1
    assert failure["reason"].startswith(reason)
    assert summary["resyncs"] >= 1
    if wait_for == 4:
        assert len(strategy.last_update.arrivals) == 4
    with pytest.raises(ProcessLookupError):
        os.kill(once.past.value, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: schemes.sketch(4, blocks=2),
        lambda: schemes.lwpd(4, k=2, t=2),
        lambda: LWPDStrategy(gradient_code(4, stragglers=1), 3, decoder="exact", stale="drop"),
    ],
    ids=["sketch", "lwpd", "gradient_coding"],
)
def test_it_is_what_the_others_are_after_it_is_back(strategy, caplog):
    until = until_back(further=30)
    _, summary = fit(strategy(), Once(kill), until, model=Classifier(adam))
    assert len(summary["failures"]) == 1
    assert summary["resyncs"] >= 1
    assert "its parameters are not rank 0's" not in caplog.text


class Unread(torch.utils.data.Dataset):
    """Cannot be read by rank 1, once."""

    def __init__(self):
        self.samples, self.past = loader().dataset, multiprocessing.Value("q", 0)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        in_rank_1 = Path("/proc/self/comm").read_text() == "lwpd-rank-1\n"
        if in_rank_1 and not self.past.value:
            self.past.value = 1
            raise OSError("the disk is gone")
        return self.samples[index]


def test_a_worker_whose_data_cannot_be_read_is_an_erasure_and_comes_back(caplog):
    until, monitor = until_back(), ExchangeMonitor()
    trainer = quiet_trainer(
        devices=4, strategy=LWPDStrategy(code=uncoded(4)), max_steps=-1, max_epochs=-1, callbacks=[until, monitor]
    )
    trainer.fit(Classifier(sgd), torch.utils.data.DataLoader(Unread(), batch_size=72))
    (failure,) = monitor.summary()["failures"]
    assert failure["reason"] == "its data could not be read: OSError: the disk is gone"
    assert "in __getitem__" in caplog.text


def raise_an_error():
    raise ValueError("a mistake of the user's")


@pytest.mark.parametrize("restart", [True, False])
def test_an_exception_is_an_erasure_where_that_is_asked_for(restart, caplog):
    strategy = LWPDStrategy(code=uncoded(4), tolerate_exceptions=True, restart_workers=restart)
    until = until_back() if restart else Until(lost(1))
    _, summary = fit(strategy, Once(raise_an_error), until)
    (failure,) = summary["failures"]
    assert failure["reason"] == "its code raised ValueError: a mistake of the user's"
    assert "in raise_an_error" in caplog.text


def test_an_exception_ends_the_run_where_it_is_not():
    with pytest.raises(WorkerFailed, match="in raise_an_error"):
        fit(LWPDStrategy(code=uncoded(4)), Once(raise_an_error))


class KillEachLife(WorkerCallback):
    def on_codeword_start(self, trainer, worker, version):
        if worker == 1 and version >= 2:
            kill()


def test_one_that_dies_again_and_again_costs_no_update():
    trainer, summary = fit(LWPDStrategy(code=uncoded(4)), KillEachLife(), Until(lost(3), further=0))
    assert [failure["worker"] for failure in summary["failures"]] == [1, 1, 1]
    assert all(torch.isfinite(p).all() for p in trainer.lightning_module.parameters())


def test_a_run_whose_only_other_worker_dies_goes_on_with_the_next_one():
    trainer, summary = fit(LWPDStrategy(code=uncoded(2)), Once(kill), until := until_back(), devices=2)
    assert trainer.global_step == until.seen_at + until.further
    assert len(summary["failures"]) == 1


@pytest.mark.slow
def test_no_process_of_a_run_is_left(tmp_path):
    with ForkedJob([*JOB, "--updates=100000", "--uncoded", "--workers=3"], env={"PYTHONPATH": str(ROOT)}) as job:
        job.wait_for_output("UPDATE 20\n", PATIENCE_S)
        ranks = {name: pid for pid, name in job.processes().items() if name.startswith("lwpd-rank-")}
        os.kill(ranks["lwpd-rank-1"], signal.SIGKILL)
        job.wait_for_output("Worker 1 is back", PATIENCE_S)
        os.kill(job.pid, signal.SIGKILL)
        job.wait_until_nothing_is_left(PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent for good"])
def test_a_rerun_rank_is_started_again(signum):
    command = [*JOB, "--updates=100000", "--start=rerun", "--uncoded", "--workers=3"]
    if signum == signal.SIGSTOP:
        command.append("--heartbeat=1")  # of which it is given 12 to come back
    with ForkedJob(command, env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}) as job:
        job.wait_for_output("UPDATE 20\n", PATIENCE_S)
        children = [pid for pid, name in job.processes().items() if pid != job.pid and name != "fork-server"]
        os.kill(children[-1], signum)
        job.wait_for_output(" is started again", PATIENCE_S)
        job.wait_for_output(" is back after update ", PATIENCE_S)
