"""Chosen arrival sets, through real processes: a gate in every worker decides who is in time."""

import itertools
import multiprocessing

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, lwpd_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

_GATE_S = 60


class Gate(WorkerCallback):
    """Lets worker i send its codeword of version v at once where ``in_time(v, i)``, else when the update has closed."""

    def __init__(self, in_time):
        self._in_time = in_time
        context = multiprocessing.get_context("fork")
        self._closed = context.Value("q", -1)
        self._changed = context.Condition()

    def on_codeword_end(self, trainer, worker, version, compute_s):
        if not self._in_time(version, worker):
            with self._changed:
                assert self._changed.wait_for(lambda: self._closed.value >= version, _GATE_S)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not trainer.is_global_zero:
            return
        with self._changed:
            self._closed.value = trainer.strategy.last_update.version
            self._changed.notify_all()

    def on_exception(self, trainer, pl_module, exception):
        with self._changed:
            self._closed.value = 1 << 62
            self._changed.notify_all()


class Comparison(pl.Callback):
    """The relative error of every decoded gradient against the full batch's, and who arrived."""

    on_workers = False

    def __init__(self):
        self.errors, self.arrived = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        update = trainer.strategy.last_update
        x, y = (
            tensor[72 * update.batch_index : 72 * (update.batch_index + 1)]
            for tensor in classification(dtype=torch.float64).tensors
        )
        parameters = list(pl_module.parameters())
        with torch.enable_grad():
            exact = torch.autograd.grad(torch.nn.functional.cross_entropy(pl_module.net(x), y), parameters)
        exact = torch.cat([g.flatten() for g in exact])
        decoded = torch.cat([p.grad.flatten() for p in parameters])
        self.errors.append(float((decoded - exact).norm() / exact.norm()))
        self.arrived.append(tuple(sorted(arrival.worker for arrival in update.arrivals)))


def fit(code, sets, **settings):
    comparison, monitor = Comparison(), ExchangeMonitor()
    gate = Gate(lambda version, worker: worker in sets[min(version, len(sets) - 1)])
    strategy = LWPDStrategy(code=code, **settings)
    trainer = quiet_trainer(
        devices=code.n + strategy.settings.dedicated_coordinator, strategy=strategy, precision="64-true",
        max_steps=len(sets), max_epochs=-1, callbacks=[comparison, monitor, gate],
    )  # fmt: skip
    trainer.fit(Classifier(sgd), loader(classification(dtype=torch.float64)))
    return comparison, monitor.summary()


@pytest.mark.slow
def test_least_squares_is_exact_for_every_5_of_8():
    sets = list(itertools.combinations(range(8), 5))
    comparison, summary = fit(
        lwpd_code(8, 4, 2), sets, wait_for=5, decoder="least_squares", stale="drop", dedicated_coordinator=True
    )
    assert comparison.arrived == sets  # all 56, each through real processes
    assert max(comparison.errors) < 1e-11
    assert summary["dropped_codewords"] > 0
    assert summary["staleness_max"] == 0


@pytest.mark.slow
def test_a_gradient_code_is_exact_for_every_set_of_2_erasures():
    sets = list(itertools.combinations(range(8), 6))
    comparison, summary = fit(
        gradient_code(8, stragglers=2), sets, wait_for=6, decoder="exact", stale="drop", dedicated_coordinator=True
    )
    assert comparison.arrived == sets
    assert max(comparison.errors) < 1e-11
    assert summary["staleness_max"] == 0


def test_projective_is_unbiased_over_all_arrival_sets_with_rank_0():
    """Without a step of the parameters in between, the mean over all sets that hold rank 0 is the exact gradient."""
    sets = [(0, *others) for others in itertools.combinations(range(1, 8), 5)]

    class Mean(pl.Callback):
        total = 0.0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            Mean.total = Mean.total + torch.cat([p.grad.flatten() for p in pl_module.parameters()])

    gate = Gate(lambda version, worker: worker in sets[min(version, len(sets) - 1)])
    data = classification(72, dtype=torch.float64)
    model = Classifier(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    strategy = LWPDStrategy(code=lwpd_code(8, 4, 2), wait_for=6, stale="drop")
    trainer = quiet_trainer(
        devices=8, strategy=strategy, precision="64-true", max_steps=len(sets), max_epochs=-1, callbacks=[Mean(), gate]
    )
    trainer.fit(model, loader(data))
    x, y = data.tensors
    loss = torch.nn.functional.cross_entropy(model.net(x), y)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    # Measured inclusion rates tilt the weights a little while the sets come in lexicographic order.
    assert (Mean.total / len(sets) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(("limit", "counted"), [(None, True), (2, True), (1, False)])
def test_a_stale_codeword_counts_up_to_max_staleness(limit, counted):
    """Worker 3 sends its codeword of version 0 only after version 1 has closed: two versions late."""
    context = multiprocessing.get_context("fork")
    closed, changed = context.Value("q", -1), context.Condition()

    class Late(WorkerCallback):
        def on_codeword_end(self, trainer, worker, version, compute_s):
            if worker == 3 and version == 0:
                with changed:
                    assert changed.wait_for(lambda: closed.value >= 1, _GATE_S)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.is_global_zero:
                with changed:
                    closed.value = trainer.strategy.last_update.version
                    changed.notify_all()

    class WaitForAll(pl.Callback):
        """After two updates the rule waits for all, so that the late codeword is there when update 2 closes."""

        on_workers = False

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.strategy.last_update.version == 1:
                trainer.strategy._fit._coordinator._rule.wait_for = 4

    monitor = ExchangeMonitor()
    strategy = LWPDStrategy(code=uncoded(4), wait_for=3, stale="apply", max_staleness=limit)
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=3, callbacks=[WaitForAll(), Late(), monitor])
    trainer.fit(Classifier(sgd), loader())
    assert monitor.summary()["staleness_max"] == (2 if counted else 0)
    assert monitor.summary()["dropped_codewords"] == (0 if counted else 1)
