"""What cannot work is refused in one sentence before any process starts."""

import multiprocessing
import os

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lwpd_lightning import LWPDStrategy, local_code, lwpd_code, uncoded
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


@pytest.fixture(autouse=True)
def _no_process_starts(monkeypatch):
    """Forking is an error here: nothing may get that far."""
    before = multiprocessing.active_children()
    forked = []
    os.register_at_fork(before=lambda: forked.append(1))
    yield
    assert multiprocessing.active_children() == before
    assert not forked


class _Batches:
    def __iter__(self):
        return iter(loader())


class _Manual(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.automatic_optimization = False


class _Rounded(Precision):
    """A user's own."""


class _TwoOptimizers(Classifier):
    def configure_optimizers(self):
        return [sgd(self.parameters()), sgd(self.parameters())]


class _Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


def fit(model=None, data=None, code=None, **settings):
    strategy = LWPDStrategy(code=code if code is not None else uncoded(2))
    trainer = quiet_trainer(devices=2, strategy=strategy, max_steps=1, **settings)
    trainer.fit(model or Classifier(sgd), data if data is not None else loader())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": _Manual()}, "automatic_optimization=False is not supported"),
        ({"model": _TwoOptimizers(sgd)}, "returned several optimizers: coded exchange decodes one gradient"),
        ({"model": _Lbfgs(sgd)}, "LBFGS evaluates several gradients"),
        ({"sync_batchnorm": True}, "sync_batchnorm=True is not supported"),
        (
            {"precision": "16-true"},
            "precision='16-true', whose gradients lose .* use precision='32-true', .* or '16-mixed'",
        ),
        (
            {"plugins": [_Rounded()]},
            "the precision plugin _Rounded is not supported by coded exchange: use precision='32",
        ),
    ],
)
def test_trainer_settings(arguments, sentence):
    with pytest.raises(MisconfigurationException, match=sentence) as refused:
        fit(**arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            loader(batch_size=71),
            "batch_size=71 is the whole update's batch, which 2 data parts do not divide: use 70 or 72",
        ),
        (_Batches(), "the training loader is a _Batches"),
        ([loader(), loader()], "gave 2 loaders: coded exchange takes one"),
    ],
)
def test_training_loaders(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(data=data)


def test_an_existing_process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(MisconfigurationException, match=r"default torch\.distributed process group exists"):
            fit()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("devices", [1, 4, 9])
def test_a_world_size_that_is_not_n(devices):
    with pytest.raises(ValueError, match=rf"world size is {devices} .*n=8 workers: use devices=8"):
        quiet_trainer(devices=devices, strategy=LWPDStrategy(code=lwpd_code(8, 4, 2)))


@pytest.mark.parametrize("wait_for", [0, 9])
def test_k_outside_1_to_n(wait_for):
    with pytest.raises(ValueError, match=rf"wait_for={wait_for} is outside 1\.\.8"):
        LWPDStrategy(code=lwpd_code(8, 4, 2), wait_for=wait_for)
    with pytest.raises(ValueError, match=rf"wait_for={wait_for} is outside 1\.\.8"):
        quiet_trainer(devices=8, strategy=LWPDStrategy(wait_for=wait_for))


def test_k_of_1_with_a_computing_coordinator():
    with pytest.raises(ValueError, match=r"wait_for=1 would let rank 0 step .* use 2\.\.8, or dedicated_coordinator"):
        LWPDStrategy(code=lwpd_code(8, 4, 2), wait_for=1)
    LWPDStrategy(code=lwpd_code(8, 4, 2), wait_for=1, dedicated_coordinator=True)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (lambda: lwpd_code(8, 4, 3), "t=3"),
        (lambda: lwpd_code(8, 3, 1), "k=3"),
        (lambda: local_code(8, data_parts=3, blocks=2), "data_parts=3"),
    ],
)
def test_impossible_codes(code, sentence):
    with pytest.raises(ValueError, match=sentence):
        code()


def test_forking_what_cannot_be_forked():
    with pytest.raises(ValueError, match="start_method='fork' with device 'cpu' and num_nodes=2"):
        quiet_trainer(devices=2, num_nodes=2, strategy=LWPDStrategy(code=uncoded(4), start_method="fork"))


def test_several_machines_need_the_runs_key(monkeypatch):
    monkeypatch.delenv("LWPD_RUN_KEY", raising=False)
    trainer = quiet_trainer(devices=1, num_nodes=2, strategy=LWPDStrategy(code=uncoded(2)), max_steps=1)
    with pytest.raises(ValueError, match=r"LWPD_RUN_KEY is not set.*openssl rand -hex 32"):
        trainer.fit(Classifier(sgd), loader())
