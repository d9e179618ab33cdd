"""Dead, stopped and failing workers, and what is left when a job ends: real processes, real signals."""

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.live import Live

from lwpd_lightning import LWPDStrategy, gradient_code, launcher, lwpd_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.exchange.update import TooFewWorkers, WorkerFailed
from lwpd_lightning.injection import FaultInjector
from lwpd_lightning.launcher import fork_workers
from lwpd_lightning.reduction.reduction import Reduction
from lwpd_lightning.testing import Job
from lwpd_lightning.worker_callback import WorkerCallback
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.integration.models import Classifier, Until, loader, lost, quiet_trainer, sgd

JOB = [sys.executable, str(Path(__file__).parent / "job.py")]
ROOT = Path(__file__).parents[2]


def fit(strategy, *callbacks, devices=8, updates=30, **loading):
    monitor = ExchangeMonitor()
    trainer = quiet_trainer(devices=devices, strategy=strategy, max_steps=updates, callbacks=[*callbacks, monitor])
    trainer.fit(Classifier(sgd), loader(shuffle=True, **loading), loader())
    return trainer, monitor.summary()


@pytest.mark.parametrize("stale", ["apply", pytest.param("drop", marks=pytest.mark.slow)])
def test_two_killed_workers_are_erasures(stale):
    strategy = LWPDStrategy(code=lwpd_code(8, 4, 2), wait_for=6, stale=stale)
    until = Until(lost(2), further=70)
    trainer, summary = fit(strategy, FaultInjector({3: 5, 6: 9}), until, updates=-1)
    assert trainer.global_step == until.seen_at + until.further
    assert sorted(failure["worker"] for failure in summary["failures"]) == [3, 6]
    assert all(failure["reason"] == "was killed by SIGKILL" for failure in summary["failures"])
    assert trainer.callback_metrics["val_acc"] > 0.8


def test_waiting_for_all_goes_on_with_all_that_live():
    strategy = LWPDStrategy(code=lwpd_code(8, 4, 2))
    trainer, summary = fit(strategy, FaultInjector({5: 4}))
    assert trainer.global_step == 30
    assert [failure["worker"] for failure in summary["failures"]] == [5]
    assert len(strategy.last_update.arrivals) == 7


def test_fewer_than_k_live():
    until, strategy = Until(lost(2)), LWPDStrategy(code=uncoded(4), wait_for=3)
    trainer, summary = fit(strategy, FaultInjector({2: 3, 3: 3}), until, devices=4, updates=-1)
    assert trainer.global_step == until.seen_at + until.further
    assert len(summary["failures"]) == 2


def test_losing_all_workers_fails_the_run():
    with pytest.raises(TooFewWorkers, match=r"1 live workers are fewer than min_workers=2; lost: \[1\]"):
        fit(LWPDStrategy(code=uncoded(2)), FaultInjector({1: 2}), devices=2)


def test_min_workers():
    with pytest.raises(TooFewWorkers, match="min_workers=4"):
        fit(LWPDStrategy(code=uncoded(4), min_workers=4), FaultInjector({1: 2}), devices=4)


@pytest.mark.parametrize("repetition", ["cyclic", "fractional"])
def test_exact_decoding_outlives_s_deaths_and_says_when_it_can_no_longer_be_exact(repetition):
    code = gradient_code(4, stragglers=1, repetition=repetition)
    exact = {"code": code, "wait_for": 3, "decoder": "exact", "stale": "drop"}
    until = Until(lost(1))
    trainer, summary = fit(LWPDStrategy(**exact), FaultInjector({2: 3}), until, devices=4, updates=-1)
    assert trainer.global_step == until.seen_at + until.further
    assert len(summary["failures"]) == 1
    with pytest.raises(TooFewWorkers, match="2 live workers are fewer than min_workers=3"):
        fit(LWPDStrategy(**exact), FaultInjector({2: 3, 3: 6}), devices=4)


def test_least_squares_goes_on_with_the_nearest_gradient_where_exact_would_stop():
    strategy = LWPDStrategy(code=gradient_code(4, stragglers=1), wait_for=3, decoder="least_squares", stale="drop")
    until = Until(lost(2))
    trainer, summary = fit(strategy, FaultInjector({2: 3, 3: 6}), until, devices=4, updates=-1)
    assert trainer.global_step == until.seen_at + until.further
    assert len(summary["failures"]) == 2


class _StopMyself(WorkerCallback):
    def on_codeword_start(self, trainer, worker, version):
        if worker == 1 and version >= 2:
            os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_falls_silent_is_an_erasure():
    strategy = LWPDStrategy(code=uncoded(4), heartbeat_s=0.6, restart_workers=False)
    trainer, summary = fit(strategy, _StopMyself(), devices=4)
    assert trainer.global_step == 30
    assert [(failure["worker"], failure["reason"]) for failure in summary["failures"]] == [(1, "its link ended")]


class _StopMyselfOnce(WorkerCallback):
    def __init__(self):
        self.pid = multiprocessing.Value("q", 0)

    def on_codeword_start(self, trainer, worker, version):
        if worker == 1 and version >= 2 and not self.pid.value:  # it may not be free for just that one
            self.pid.value = os.getpid()
            os.kill(os.getpid(), signal.SIGSTOP)


class _AndIsGone(Until):
    def __init__(self, pid):
        super().__init__(lost(1))
        self.pid = pid

    def seen(self):
        with pytest.raises(ProcessLookupError):
            os.kill(self.pid.value, 0)


@pytest.mark.parametrize("wait_for", [3, 4])
def test_an_erased_fork_cannot_wake_and_write_into_shared_memory(wait_for):
    stop = _StopMyselfOnce()
    until = _AndIsGone(stop.pid)
    strategy = LWPDStrategy(code=uncoded(4), wait_for=wait_for, heartbeat_s=0.6)
    trainer, summary = fit(strategy, stop, until, devices=4, updates=-1)
    assert trainer.global_step == until.seen_at + until.further
    assert [failure["worker"] for failure in summary["failures"]] == [1]


class _GoesOn(Callback):
    """A worker stops where a decision needs it, from number 40 on; after so many updates without it, it goes on.

    Args:
        worker: which one.
        updates: how many.
    """

    on_workers = False

    def __init__(self, worker, updates):
        self.pid, self.worker, self.updates, self.went_on = multiprocessing.Value("q", 0), worker, updates, False

    def stop(self, begin, reduction, decision):
        asked = reduction.ranks.me == self.worker in decision.workers and decision.number >= 40
        if asked and not self.pid.value:
            self.pid.value = os.getpid()
            os.kill(os.getpid(), signal.SIGSTOP)
        begin(reduction, decision)

    def on_train_batch_end(self, trainer, *args):
        arrived = {arrival.worker for arrival in trainer.strategy.last_update.arrivals}
        if not self.pid.value:
            return
        if self.worker in arrived:
            trainer.should_stop = self.went_on
        elif not self.went_on:
            self.updates -= 1
            if not self.updates:
                self.went_on = True
                os.kill(self.pid.value, signal.SIGCONT)


# Of sums that the worker may yet write there are two places, or ten of ternary ones.
@pytest.mark.parametrize(
    ("updates", "wire"),
    [(1, {}), (8, {"stale": "drop", "wire_dtype": "ternary", "update_dtype": "ternary", "compressor": "whitened"})],
    ids=["float32", "ternary"],
)
def test_updates_do_without_a_fork_that_stops_where_it_is_needed_and_it_counts_again(monkeypatch, updates, wire):
    stops, begin = _GoesOn(1, updates), Reduction.begin
    monkeypatch.setattr(Reduction, "begin", lambda reduction, decision: stops.stop(begin, reduction, decision))
    strategy = LWPDStrategy(code=uncoded(4), wait_for=3, heartbeat_s=1000.0, **wire)
    _, summary = fit(strategy, stops, devices=4, updates=-1)
    assert stops.went_on
    assert not summary["failures"]


class _KillMyFetcher(WorkerCallback):
    def on_codeword_start(self, trainer, worker, version):
        if worker == 1 and version >= 2:  # it may not be free for just that one
            fetchers = [child for child in multiprocessing.active_children() if child.pid != os.getpid()]
            for fetcher in fetchers:
                fetcher.kill()


@pytest.mark.parametrize("wait_for", [3, 4])
def test_a_worker_whose_dataloader_process_is_killed_is_an_erasure(wait_for):
    """As where memory is short."""
    until, strategy = Until(lost(1)), LWPDStrategy(code=uncoded(4), wait_for=wait_for, restart_workers=False)
    trainer, summary = fit(strategy, _KillMyFetcher(), until, devices=4, updates=-1, num_workers=1)
    assert trainer.global_step == until.seen_at + until.further
    (failure,) = summary["failures"]
    assert failure["worker"] == 1
    assert failure["reason"].startswith("a process of its DataLoader was killed: ")


class _Failing(Classifier):
    def training_step(self, batch, batch_idx):
        if not self.trainer.is_global_zero and self.global_step == 3:
            raise ArithmeticError("a worker's own mistake")
        return super().training_step(batch, batch_idx)


def test_a_workers_exception_fails_the_run_with_its_traceback():
    trainer = quiet_trainer(devices=4, strategy=LWPDStrategy(code=uncoded(4)), max_steps=10)
    with pytest.raises(WorkerFailed, match=r"(?s)worker \d failed:.*in training_step.*a worker's own mistake"):
        trainer.fit(_Failing(sgd), loader())


class _NoLoss(Classifier):
    def training_step(self, batch, batch_idx):
        return None


def test_a_training_step_without_a_loss_is_refused():
    trainer = quiet_trainer(devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_steps=10)
    with pytest.raises(RuntimeError, match="training_step"):
        trainer.fit(_NoLoss(sgd), loader())


# Two reruns show what four do.
STARTS = pytest.mark.parametrize("start", [("--start=fork",), ("--start=rerun", "--workers=2")], ids=["fork", "rerun"])


def job(*arguments, kind=ForkedJob):
    return kind([*JOB, *arguments], env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "kind"),
    [
        pytest.param(["--start=fork"], ForkedJob, id="fork"),
        pytest.param(["--start=rerun", "--workers=2"], Job, id="rerun", marks=pytest.mark.real_start),
    ],
)
def test_nothing_is_left_after_success(start, kind):
    with job(*start, "--updates", "5", "--loader-workers", "1", kind=kind) as running:
        result = running.wait(PATIENCE_S)
        assert result.exit_code == 0, result.output
        assert "DONE" in result.output
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
@STARTS
def test_nothing_is_left_after_a_workers_exception(start):
    with job(*start, "--fail-at", "3") as running:
        result = running.wait(PATIENCE_S)
        assert result.exit_code not in (0, None)
        assert "injected failure" in result.output
        assert "Traceback" in result.output
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["script", "setup", "configure_optimizers"])
def test_a_rerun_worker_that_does_not_start_says_why_and_fails_the_run_by_its_name(place):
    with job("--start=rerun", "--workers=2", "--breaks-in", place) as running:
        result = running.wait(PATIENCE_S)
        assert result.exit_code not in (0, None)
        said, failed = result.output.index(f"RuntimeError: injected failure in {place}"), "WorkerFailed: worker 1 "
        assert result.output.rindex("Traceback", 0, said) < said < result.output.index(failed)
        last = result.output.rstrip().splitlines()[-1]
        assert last.endswith(f"{failed}exited with code 1 before it joined; its output is above.")
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
@STARTS
def test_ctrl_c_leaves_nothing(start):
    with job(*start) as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.interrupt()
        result = running.wait(ENDING_S)
        assert result.exit_code != 0
        assert "Traceback" not in result.output
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
@STARTS
def test_rank_0_ends_well_when_a_scheduler_ends_all_processes_of_the_job(start):
    """It runs its hooks, saves what it saves on the way out, and its workers are there meanwhile."""
    with job(*start) as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.interrupt(signal.SIGTERM)
        result = running.wait(ENDING_S)
        assert result.exit_code == 128 + signal.SIGTERM
        assert "Received SIGTERM" in result.output
        assert "Traceback" not in result.output
        assert "is lost" not in result.output
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
@STARTS
def test_workers_outlive_what_their_whole_job_is_sent(start):
    """Were they to end, rank 0, which has not been sent it, would have lost them."""
    with job(*start, "--updates", "1000000") as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        workers = [p for p, name in running.processes().items() if p != running.pid and name != "fork-server"]
        for signum in (signal.SIGTERM, signal.SIGINT):
            for pid in workers:
                running.kill(pid, signum)
        running.wait_for_output(f"UPDATE {int(running.output.rsplit('UPDATE ', 1)[1].split()[0]) + 20}", PATIENCE_S)
        assert "is lost" not in running.output
        assert set(workers) <= running.processes().keys()
        running.kill()
        running.wait(ENDING_S)
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.parametrize(
    ("hangs", "code"),
    [("asleep", 128 + signal.SIGRTMIN), ("busy", 128 + signal.SIGRTMIN), ("deaf", -signal.SIGKILL)],
)
def test_workers_that_hang_are_told_to_end_and_killed_where_they_hear_nothing(monkeypatch, hangs, code):
    if hangs == "deaf":
        monkeypatch.setattr(launcher, "_TERMINATE_GRACE_S", 0.5)
    hanging = torch.zeros(2, dtype=torch.bool).share_memory_()

    def work(rank):
        hanging[rank - 1] = True
        if hangs == "deaf":
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            if hangs != "busy":
                time.sleep(1.0)

    workers = fork_workers([1, 2], work)
    processes = workers.processes
    while not hanging.all():
        time.sleep(0.01)
    workers.end()
    assert [process.exit_code(0.0) for process in processes] == [code] * 2
    assert workers.exited(1, 0.0) is None  # it is known no more


@pytest.mark.slow
@STARTS
def test_workers_end_when_rank_0_is_killed(start):
    with job(*start) as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.kill()
        running.wait(ENDING_S)
        running.wait_until_nothing_is_left(ENDING_S)


@pytest.mark.slow
def test_a_rank_killed_from_outside_is_named():
    with job("--updates", "100000") as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.kill(running.rank(2))
        running.wait_for_output("Worker 2 is lost", ENDING_S)
        running.interrupt()
        running.wait(ENDING_S)


def test_a_worker_that_dies_before_it_joins_fails_the_start():
    class DieEarly(Classifier):
        def parameters(self, recurse=True):
            if self.trainer.global_rank == 1:
                os._exit(7)
            return super().parameters(recurse)

    trainer = quiet_trainer(devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_steps=2)
    started = time.monotonic()
    with pytest.raises(WorkerFailed, match="worker 1 exited with code 7 before it joined"):
        trainer.fit(DieEarly(sgd), loader())
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("stale", ["apply", "drop"])
def test_parameters_stay_finite_when_a_worker_dies_at_once(stale):
    strategy = LWPDStrategy(code=lwpd_code(4, 2, 2), wait_for=3, stale=stale)
    trainer, _ = fit(strategy, FaultInjector({3: 0}), devices=4)
    assert all(torch.isfinite(p).all() for p in trainer.lightning_module.parameters())


def test_a_worker_can_print_though_a_progress_bar_was_drawing_when_it_was_forked():
    console = Console(file=io.StringIO(), force_terminal=True)
    held, release = threading.Event(), threading.Event()

    def draw():
        with console._lock:
            held.set()
            release.wait()

    def work(rank):
        # Two threads at a time, since one may be given the identity, and with it the lock, of the thread that drew.
        both = threading.Barrier(2)

        def warn():
            both.wait()
            print("a warning", file=sys.stderr)

        second = threading.Thread(target=warn)
        second.start()
        warn()
        second.join()

    drawing = threading.Thread(target=draw)
    with Live(console=console, auto_refresh=False):
        drawing.start()
        held.wait()
        workers = fork_workers([1], work)
        ended = workers.exited(1, wait_s=20)
        workers.end()
        release.set()
        drawing.join()
    assert ended == "exited with code 0"


class _Hangs(Classifier):
    """Waits for what never comes, as a collective does of which another rank has left."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 2 and self.global_step == 3:
            threading.Event().wait()
        return super().training_step(batch, batch_idx)


def test_a_worker_whose_training_step_hangs_is_an_erasure():
    monitor = ExchangeMonitor()
    strategy = LWPDStrategy(code=uncoded(4), update_timeout_s=1.0)
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=20, callbacks=[monitor])
    trainer.fit(_Hangs(sgd), loader())
    assert trainer.global_step == 20
    (failure,) = monitor.summary()["failures"]
    assert (failure["worker"], failure["update"], failure["reason"]) == (2, 3, "it held an update up for 1 s")
