"""The monitor's figures follow from the updates that it saw."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.coding import uncoded
from lwpd_lightning.exchange.update import Failure, Update
from lwpd_lightning.rule.arrivals import Arrival


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
        refused=[2],
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
        "refused_codewords": 1,
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
