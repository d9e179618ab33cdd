"""Tuners that train in mid-fit, and copies of what a fit leaves behind."""

import copy
import io
import pickle

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lwpd_lightning import LWPDStrategy, schemes, uncoded
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


class Tuned(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.lr = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class EveryEpoch(LearningRateFinder):
    """As Lightning's documentation does it, in mid-fit."""

    def on_fit_start(self, *args):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class SetEpoch(Callback):
    """What the finder does, once it is known what it found."""

    def __init__(self, epoch, lr):
        self.epoch, self.lr = epoch, lr

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.optimizers[0].param_groups[0]["lr"] = self.lr


@pytest.mark.parametrize(("finder", "epoch"), [(LearningRateFinder, 0), (EveryEpoch, 1)])
def test_a_learning_rate_is_found_within_a_fit(tmp_path, finder, epoch):
    model, alone = Tuned(), Tuned()
    finding = finder(min_lr=1e-3, num_training_steps=40, early_stop_threshold=None)
    strategy = LWPDStrategy(code=uncoded(2))
    trainer = quiet_trainer(max_epochs=3, default_root_dir=tmp_path, callbacks=[finding], devices=2, strategy=strategy)
    trainer.fit(model, loader())
    assert trainer.global_step == 30
    assert len(finding.optimal_lr.results["lr"]) >= 10
    quiet_trainer(max_epochs=3, callbacks=[SetEpoch(epoch, model.lr)]).fit(alone, loader())
    torch.testing.assert_close(parameters(model), parameters(alone), rtol=1e-4, atol=1e-5)
    assert strategy.last_update.resyncs == 0


def test_what_senders_remember_outlives_a_tuners_run_in_mid_fit(tmp_path, caplog):
    model, straight = Tuned(), Tuned()
    finding = EveryEpoch(min_lr=1e-3, num_training_steps=40, early_stop_threshold=None)
    settings = {"max_epochs": 2, "devices": 2, "default_root_dir": tmp_path}
    quiet_trainer(strategy=schemes.sketch(2, blocks=2), callbacks=[finding], **settings).fit(model, loader())
    quiet_trainer(strategy=schemes.sketch(2, blocks=2), callbacks=[SetEpoch(1, model.lr)], **settings).fit(
        straight, loader()
    )
    assert torch.equal(parameters(model), parameters(straight))
    assert "lacks" not in caplog.text


def test_a_learning_rate_is_found_before_a_fit(tmp_path):
    trainer = quiet_trainer(devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_epochs=1, default_root_dir=tmp_path)
    model = Tuned()
    found = Tuner(trainer).lr_find(model, loader(), num_training=40, early_stop_threshold=None)
    assert len(found.results["lr"]) == 10  # an epoch
    trainer.fit(model, loader())
    assert trainer.global_step == 10


def test_what_a_fit_leaves_behind_can_be_copied():
    trainer = quiet_trainer(devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_epochs=1)
    trainer.fit(Tuned(), loader(), loader())
    for kept in (trainer.strategy, trainer.train_dataloader):
        copy.deepcopy(kept)
        pickle.loads(pickle.dumps(kept))
    torch.save(trainer, io.BytesIO())
    assert trainer.train_dataloader.dataset is not None


class Unregistered(Tuned):
    def configure_optimizers(self):
        self.hidden = [torch.nn.Parameter(torch.ones(3, 2))]
        return sgd([*self.parameters(), *self.hidden])


class ForSparse(Tuned):
    def configure_optimizers(self):
        return torch.optim.SparseAdam(list(self.parameters()))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [(Unregistered, r"parameter of shape \(3, 2\) that Unregistered does not register"), (ForSparse, "use Adam")],
)
def test_optimizers_that_other_ranks_could_not_follow_are_refused(module, sentence):
    trainer = quiet_trainer(devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_epochs=1)
    with pytest.raises(MisconfigurationException, match=sentence):
        trainer.fit(module(), loader())
