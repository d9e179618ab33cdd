"""Injected stragglers and faults hit whom they name."""

import multiprocessing
import signal
from types import SimpleNamespace

import pytest

from lwpd_lightning.injection import FaultInjector, StragglerInjector, injectors
from lwpd_lightning.injection.stragglers import SlowTail, SlowWorkers

# Stragglers.


def test_a_worker_is_held_back_as_long_as_the_model_says(monkeypatch):
    slept = []
    monkeypatch.setattr(injectors.time, "sleep", slept.append)
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
