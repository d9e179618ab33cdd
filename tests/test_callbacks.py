"""Injected stragglers and faults hit whom they name; the monitor's figures follow from the updates that it saw."""

import json
import math
import multiprocessing
import signal
from types import SimpleNamespace

import pytest
import torch

from lwpd_lightning import callbacks
from lwpd_lightning.callbacks import ExchangeMonitor, FaultInjector, StragglerInjector
from lwpd_lightning.coding import uncoded
from lwpd_lightning.exchange.rule import Arrival
from lwpd_lightning.exchange.update import Failure, Update
from lwpd_lightning.stragglers import SlowTail, SlowWorkers


def update(version=0, **changed):
    figures = {
        "version": version,
        "epoch": 0,
        "batch_index": version,
        "arrivals": [Arrival(0, 0, 0.0), Arrival(2, 0, 0.1)],
        "wait_for": 2,
        "loss": 1.5,
        "samples": 8,
        "wait_s": 0.25,
        "compute_s": 0.5,
        "bytes_up": 1000,
        "bytes_down": 3000,
        "uploads": 2,
        "code": uncoded(4),
        "dropped": 0,
        "resyncs": 0,
        "live": 3,
        "inclusion": [1.0, 0.0, 1.0],
    }
    return Update(**{**figures, **changed})


# Stragglers.


def test_a_worker_is_held_back_as_long_as_the_model_says(monkeypatch):
    slept = []
    monkeypatch.setattr(callbacks.time, "sleep", slept.append)
    injector = StragglerInjector(SlowTail(probability=0.5, seconds=2.0, seed=3))
    for worker in range(8):
        injector.on_codeword_end(None, worker, 7, compute_s=2.0)
    assert slept == [injector.model.delay_s(worker, 7, 2.0) for worker in range(8)]
    assert set(slept) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("strategy", "workers"), [(SimpleNamespace(), 8), (SimpleNamespace(code=SimpleNamespace(n=7)), 7)]
)
def test_a_model_that_does_not_fit_is_refused_at_setup(strategy, workers):
    trainer = SimpleNamespace(strategy=strategy, world_size=8)
    StragglerInjector(SlowWorkers(slowdown={workers - 1: 2.0})).setup(trainer, None, "fit")
    with pytest.raises(ValueError, match=f"names worker {workers}, but the run has workers 0 to {workers - 1}"):
        StragglerInjector(SlowWorkers(slowdown={workers: 2.0})).setup(trainer, None, "fit")


# Faults.


@pytest.mark.parametrize("kills", [{-1: 3}, {2: -1}])
def test_impossible_kills_are_refused(kills):
    ((worker, version),) = kills.items()
    with pytest.raises(ValueError, match=rf"^kills\[{worker}\]={version} .*: use .*\.$"):
        FaultInjector(kills)


@pytest.mark.parametrize(
    ("strategy", "first", "workers"),
    [
        (SimpleNamespace(), 1, 8),
        (SimpleNamespace(code=SimpleNamespace(n=8)), 1, 8),
        (SimpleNamespace(code=SimpleNamespace(n=7)), 0, 7),  # rank 0 is a dedicated coordinator
    ],
)
def test_kills_that_would_never_come_are_refused_at_setup(strategy, first, workers):
    trainer = SimpleNamespace(strategy=strategy, world_size=8)
    FaultInjector({first: 0, workers - 1: 0}).setup(trainer, None, "fit")
    for worker in {0, workers} - {first}:
        with pytest.raises(ValueError, match=f"names worker {worker}, but only workers {first} to {workers - 1} "):
            FaultInjector({worker: 0}).setup(trainer, None, "fit")


def _compute(injector, worker, versions, is_global_zero, reached):
    for version in versions:
        injector.on_codeword_start(SimpleNamespace(is_global_zero=is_global_zero), worker, version)
        reached.send(version)


@pytest.mark.parametrize(
    ("worker", "versions", "is_global_zero", "lived"),
    [
        (1, [0, 2, 5, 9], False, [0, 2]),  # killed at the first version from 4 on, though 4 itself was skipped
        (2, [0, 2, 5, 9], False, [0, 2, 5, 9]),
        (1, [4], False, []),
        (1, [4, 5], True, [4, 5]),
    ],
)
def test_a_worker_dies_of_sigkill_at_its_version(worker, versions, is_global_zero, lived):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_compute, args=(FaultInjector({1: 4}), worker, versions, is_global_zero, there)
    )
    process.start()
    process.join(20)
    assert process.exitcode == (0 if lived == versions else -signal.SIGKILL)
    assert [here.recv() for _ in lived] == lived
    assert not here.poll(0)


# The monitor.


class Log:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


def watched(updates, failures=()):
    """A monitor that saw a fit of these updates, and what it logged."""
    log, module = Log(), torch.nn.Linear(3, 2)
    module.bias.requires_grad = False
    strategy = SimpleNamespace(last_update=None, failures=list(failures))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.125)
    trainer = SimpleNamespace(strategy=strategy, loggers=[log], optimizers=[optimizer], global_step=0)
    monitor = ExchangeMonitor()
    monitor.setup(trainer, module, "fit")
    monitor.on_train_start(trainer, module)
    for seen in updates:
        strategy.last_update = seen
        trainer.global_step += 1
        monitor.on_train_batch_end(trainer, module, None, None, seen.batch_index)
    monitor.teardown(trainer, module, "fit")
    return monitor, log.rows


UPDATES = [
    update(0),
    update(1, arrivals=[Arrival(0, 0, 0.0), Arrival(1, 1, 0.0), Arrival(2, 0, 0.2)], uploads=3, samples=12, wait_s=0.5),
    update(
        2,
        arrivals=[Arrival(0, 0, 0.0)],
        uploads=2,
        dropped=1,
        resyncs=2,
        live=2,
        inclusion=[1.0, 0.5, 0.5],
    ),
    update(
        3,
        arrivals=[Arrival(0, 0, 0.0), Arrival(1, 4, 0.0)],
        uploads=1,
        bytes_up=500,
        bytes_down=0,
        resyncs=1,
        compute_s=1.5,
    ),
]


def test_the_summary_adds_the_updates_up():
    failure = Failure(worker=2, update=3, reason="was killed by SIGKILL")
    summary = watched(UPDATES, [failure])[0].summary()
    expected = {
        "parameters": 6,
        "updates": 4,
        "samples": 8 + 12 + 8 + 8,
        "wait_s_mean": (0.25 + 0.5 + 0.25 + 0.25) / 4,
        "compute_s_mean": (0.5 + 0.5 + 0.5 + 1.5) / 4,
        "bytes_up": 3500,
        "bytes_down": 9000,
        "bytes_up_per_update_per_worker": 3500 / 8,
        "arrivals_mean": 8 / 4,
        "late_codewords": 2,
        "dropped_codewords": 1,
        "resyncs": 3,
        "decoded_share_mean": (0.5 + 0.75 + 0.25 + 0.5) / 4,
        "staleness_mean": 5 / 8,
        "staleness_max": 4,
        "inclusion_rate": [1.0, 0.0, 1.0],
        "failures": [{"worker": 2, "update": 3, "reason": "was killed by SIGKILL"}],
    }
    assert {key: summary[key] for key in expected} == expected
    assert 0 <= summary["startup_s"] <= summary["fit_s"]
    assert 0 <= 4 * summary["update_s_mean"] <= summary["fit_s"] + 1e-9
    assert summary.keys() == {*expected, "startup_s", "fit_s", "update_s_mean"}


def test_every_update_is_logged_at_its_step():
    rows = watched(UPDATES)[1]
    assert [step for step, _ in rows] == [1, 2, 3, 4]
    second = {key.removeprefix("exchange/"): value for key, value in rows[1][1].items()}
    assert all(key.startswith("exchange/") for key in rows[1][1])
    assert (second["loss"], second["lr"], second["arrivals"], second["dropped"]) == (1.5, 0.125, 3, 0)
    assert second["staleness_mean"] == pytest.approx(1 / 3)
    assert [second[f"arrived/{w}"] for w in range(3)] == [1.0, 1.0, 1.0]
    assert [second[f"staleness/{w}"] for w in range(3)] == [0.0, 1.0, 0.0]
    third = rows[2][1]
    assert third["exchange/arrived/1"] == 0.0
    assert math.isnan(third["exchange/staleness/1"])
    assert third["exchange/inclusion/1"] == 0.5


def test_a_second_fit_starts_anew():
    monitor, _ = watched(UPDATES, [Failure(1, 0, "its link ended")])
    monitor.setup(None, None, "validate")
    assert monitor.summary()["updates"] == 4
    monitor.setup(None, None, "fit")
    assert monitor.summary()["updates"] == 0
    assert monitor.summary()["failures"] == []


def test_a_fit_without_updates_has_a_summary_too():
    summary = ExchangeMonitor().summary()
    figures = [value for value in summary.values() if not isinstance(value, list)]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    json.dumps(summary)


def test_other_strategies_are_not_logged():
    log = Log()
    trainer = SimpleNamespace(strategy=SimpleNamespace(), loggers=[log], optimizers=[], global_step=1)
    ExchangeMonitor().on_train_batch_end(trainer, torch.nn.Linear(1, 1), None, None, 0)
    assert log.rows == []
