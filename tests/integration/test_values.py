"""A gradient that is no finite number costs one codeword, and not the model."""

import logging

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, lwpd_code, schemes, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.exchange.update import NotFinite
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


class Spoilt(Classifier):
    """Has a gradient of ``value`` at one step on some ranks."""

    def __init__(self, ranks, value, at=3):
        super().__init__(sgd)
        self.ranks, self.value, self.at = ranks, value, at

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.global_step == self.at and self.global_rank in self.ranks else loss


def fit(strategy, model, n=4, updates=8):
    pl.seed_everything(1)
    monitor = ExchangeMonitor()
    trainer = quiet_trainer(devices=n, strategy=strategy, max_steps=updates, callbacks=[monitor])
    trainer.fit(model, loader(shuffle=True))
    assert trainer.global_step == updates
    return monitor.summary()


def finite(model):
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("wait_for", [3, 4])
def test_a_codeword_that_is_not_finite_is_refused_counted_and_named(wait_for, rank, value, caplog):
    model = Spoilt([rank], value)
    with caplog.at_level(logging.WARNING):
        summary = fit(LWPDStrategy(code=uncoded(4), wait_for=wait_for), model)
    assert finite(model)
    assert summary["refused_codewords"] == 1
    assert summary["failures"] == []
    assert f"Worker {rank}'s codeword of version 3 is not finite: it does not count" in caplog.text


@pytest.mark.parametrize(
    "strategy", [lambda: schemes.sketch(4), lambda: LWPDStrategy(code=lwpd_code(4, 2, 2))], ids=["sketch", "lwpd"]
)
def test_nothing_of_it_is_left_in_a_memory_or_a_mixture(strategy):
    model = Spoilt([1], float("nan"))
    assert fit(strategy(), model, updates=20)["refused_codewords"] == 1
    assert finite(model)


def test_a_run_of_which_no_codeword_is_finite_fails_in_a_sentence():
    with pytest.raises(NotFinite, match=r"update 3 cannot be made: the codewords of workers \[0, 1, 2, 3\] are not"):
        fit(LWPDStrategy(code=uncoded(4)), Spoilt(range(4), float("nan")))


def test_a_code_that_must_be_exact_fails_where_too_few_are_finite():
    code = gradient_code(4, stragglers=1)
    strategy = {"code": code, "wait_for": 3, "decoder": "exact", "stale": "drop"}
    model = Spoilt([1], float("nan"))
    assert fit(LWPDStrategy(**strategy), model)["refused_codewords"] <= 1
    assert finite(model)
    with pytest.raises(NotFinite, match="update 3 cannot be made"):
        fit(LWPDStrategy(**strategy), Spoilt([1, 2], float("nan")))
