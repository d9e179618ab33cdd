"""Whatever loader Lightning takes: at K = n the same weights as one process that reads it."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Sampler

from lwpd_lightning import LWPDStrategy, gradient_code, uncoded
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

EXACT = {"decoder": "exact", "stale": "drop"}
CODES = {"uncoded": (lambda: uncoded(2), {}), "exact": (lambda: gradient_code(3, 1), EXACT)}  # rank 0: 2 parts of 3
unshuffled = partial(loader, batch_size=72)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def coded(model, data, code="uncoded", **settings):
    make, exact = CODES[code]
    strategy = LWPDStrategy(code=make(), timeout_s=60, **exact)
    trainer = quiet_trainer(devices=strategy.settings.code.n, strategy=strategy, **settings)
    trainer.fit(model, data)
    return trainer


def alone(model, data, **settings):
    trainer = quiet_trainer(devices=1, **settings)
    trainer.fit(model, data)
    return trainer


def assert_same(make_model, make_data, code="uncoded", make_callbacks=lambda: [], **settings):
    """Train both ways; returns both trainers."""
    models = make_model(), make_model()
    trainers = [
        run(model, make_data(), callbacks=make_callbacks(), **settings, **more)
        for run, model, more in zip((coded, alone), models, ({"code": code}, {}), strict=True)
    ]
    assert trainers[0].global_step == trainers[1].global_step > 0
    assert trainers[0].current_epoch == trainers[1].current_epoch
    ours, theirs = map(weights, models)
    assert torch.linalg.vector_norm(ours - theirs) <= 1e-5 * torch.linalg.vector_norm(theirs)
    assert torch.linalg.vector_norm(theirs - weights(make_model())) > 1e-2 * torch.linalg.vector_norm(theirs)
    return trainers


# Collections that hold one loader.


class _Structured(Classifier):
    """Trains otherwise when the batch is not in the collection that its loader is in."""

    def __init__(self, kind):
        super().__init__(sgd)
        self.kind = kind

    def training_step(self, batch, batch_idx):
        assert type(batch) is self.kind
        inner = batch["a"] if isinstance(batch, dict) else batch[0]
        x, y = inner if self.kind is not dict or not isinstance(inner, list) or len(inner) != 1 else inner[0]
        return torch.nn.functional.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("kind", "collection"),
    [
        (list, lambda one: [one]),
        (dict, lambda one: {"a": one}),
        (dict, lambda one: {"a": [one]}),
        (tuple, lambda one: (one,)),
    ],
    ids=["list", "dictionary", "nested", "tuple"],
)
def test_every_rank_sees_the_collection_that_the_loader_is_in(kind, collection, code):
    assert_same(lambda: _Structured(kind), lambda: collection(unshuffled()), code, max_epochs=2)


# Epochs of unequal length.


class _Shrinking(Sampler):
    """An epoch of its own length, as set_epoch says."""

    def __init__(self, lengths):
        self.lengths, self.epoch = lengths, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.lengths[self.epoch]

    def __iter__(self):
        start = 17 * self.epoch
        return iter(range(start, start + len(self)))


class _LastBatches(pl.Callback):
    def __init__(self):
        self.last, self.trained = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.trained.append((trainer.current_epoch, batch_idx))
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.last.append((trainer.current_epoch, batch_idx))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("lengths", "batches"),
    [([360, 144, 288], [5, 2, 4]), ([144, 360, 72], [2, 2, 1])],  # Lightning cuts longer ones to the first's
    ids=["shorter", "longer"],
)
def test_epochs_of_other_lengths_than_the_first(lengths, batches, code):
    seen = _LastBatches()
    trainers = assert_same(
        partial(Classifier, sgd),
        lambda: loader(sampler=_Shrinking(lengths), batch_size=72),
        code,
        make_callbacks=lambda: [seen],
        max_epochs=3,
    )
    expected = [(epoch, index) for epoch, count in enumerate(batches) for index in range(count)]
    assert seen.trained == 2 * expected
    assert trainers[0].strategy.failures == []
