"""A gradient that is no finite number, or far too large, costs one codeword, and not the model."""

import logging
import re

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, lwpd_code, schemes, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.exchange.update import NotFinite
from tests.integration.models import Classifier, Until, loader, quiet_trainer, sgd


class Spoilt(Classifier):
    """Has a gradient of ``value`` on some ranks, once, at the first step from 3 on that the rank is there for."""

    def __init__(self, ranks, value):
        super().__init__(sgd)
        self.ranks, self.value, self.spoilt = ranks, value, False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.spoilt or self.global_step < 3 or self.global_rank not in self.ranks:
            return loss
        self.spoilt = True
        return loss * self.value


def fit(strategy, model, n=4):
    pl.seed_everything(1)
    monitor, until = ExchangeMonitor(), Until(lambda trainer: trainer.strategy.last_update.refused, further=4)
    trainer = quiet_trainer(devices=n, strategy=strategy, max_steps=-1, max_epochs=-1, callbacks=[monitor, until])
    trainer.fit(model, loader(shuffle=True))
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
    version = r"3" if wait_for == 4 or rank == 0 else r"\d+"
    assert re.search(f"Worker {rank}'s codeword of version {version} is not finite: it does not count", caplog.text)


@pytest.mark.parametrize(
    "strategy", [lambda: schemes.sketch(4), lambda: LWPDStrategy(code=lwpd_code(4, 2, 2))], ids=["sketch", "lwpd"]
)
def test_nothing_of_it_is_left_in_a_memory_or_a_mixture(strategy):
    model = Spoilt([1], float("nan"))
    assert fit(strategy(), model)["refused_codewords"] == 1
    assert finite(model)


def test_a_run_of_which_no_codeword_is_finite_fails_in_a_sentence():
    with pytest.raises(NotFinite, match=r"update 3 cannot be made: the codewords of workers \[0, 1, 2, 3\] are not"):
        fit(LWPDStrategy(code=uncoded(4)), Spoilt(range(4), float("nan")))


def test_a_code_that_must_be_exact_fails_where_too_few_are_finite():
    code = gradient_code(4, stragglers=1)
    strategy = {"code": code, "wait_for": 3, "decoder": "exact", "stale": "drop"}
    model = Spoilt([1], float("nan"))
    assert fit(LWPDStrategy(**strategy), model)["refused_codewords"] == 1
    assert finite(model)
    with pytest.raises(NotFinite, match="update 3 cannot be made"):
        fit(LWPDStrategy(**strategy), Spoilt([1, 2], float("nan")))


# Too large.

FAR_TOO_LARGE = 1e8


@pytest.mark.parametrize("allowed", ["10x", 1e3])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("wait_for", [3, 4])
def test_a_codeword_that_is_far_too_large_is_refused_counted_and_named(wait_for, rank, allowed, caplog):
    model = Spoilt([rank], FAR_TOO_LARGE)
    with caplog.at_level(logging.WARNING):
        summary = fit(LWPDStrategy(code=uncoded(4), wait_for=wait_for, max_codeword_norm=allowed), model)
    assert summary["refused_codewords"] == 1
    assert summary["failures"] == []
    version = r"3" if wait_for == 4 or rank == 0 else r"\d+"
    words = (
        rf"Worker {rank}'s codeword of version {version} is too large: it does not count \(norm (\S+) in update \d+, "
    )
    norm, bound = map(float, re.search(words + r"at most (\S+)\)", caplog.text).groups())
    assert norm > 1e4 * bound
    assert max(parameter.abs().max() for parameter in model.parameters()) < 1e3


def test_without_the_guard_it_counts():
    model = Spoilt([2], FAR_TOO_LARGE)
    pl.seed_everything(1)
    quiet_trainer(devices=4, strategy=LWPDStrategy(code=uncoded(4)), max_steps=8, max_epochs=-1).fit(
        model, loader(shuffle=True)
    )
    assert not max(parameter.abs().max() for parameter in model.parameters()) < 1e3


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: schemes.sketch(4, max_codeword_norm=1e3),
        lambda: schemes.k_async(4, 4, wire_dtype="int8", error_feedback=True, max_codeword_norm=1e3),
        lambda: LWPDStrategy(code=lwpd_code(4, 2, 2), max_codeword_norm="10x"),
        lambda: LWPDStrategy(code=uncoded(4), dedicated_coordinator=True, max_codeword_norm="10x"),
    ],
    ids=["sketch", "int8", "lwpd", "dedicated"],
)
def test_nothing_of_one_that_is_too_large_is_left(strategy):
    strategy = strategy()
    model = Spoilt([1], FAR_TOO_LARGE)
    n = 4 + strategy.settings.dedicated_coordinator
    assert fit(strategy, model, n)["refused_codewords"] == 1
    assert max(parameter.abs().max() for parameter in model.parameters()) < 1e3


def test_a_run_of_which_all_codewords_are_too_large_fails_in_a_sentence():
    with pytest.raises(
        NotFinite,
        match=r"update 3 cannot be made: the codewords of workers \[0, 1, 2, 3\] are not finite or larger than",
    ):
        fit(LWPDStrategy(code=uncoded(4), max_codeword_norm="10x"), Spoilt(range(4), FAR_TOO_LARGE))
