"""States of every few seconds: whichever way validation is due, and at a small part of training's time."""

import time

import lightning.pytorch as pl
import pytest
import torch

from experiments.checkpoints import BEFORE, RECENT, RecentCheckpoints, _Writer
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


class Waits(pl.Callback):
    """Begins no update before the last state is written."""

    def __init__(self, recent):
        self._writer = recent._writer

    def on_train_batch_start(self, *_):
        while not self._writer.due:
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "updates"),
    [({"val_check_interval": "00:01:00:00"}, (9, 8)), ({"val_check_interval": 4}, (9, 7)), ({}, (9, 8))],
    ids=["by the clock", "by batches", "by epochs"],
)
def test_they_are_of_updates_after_which_no_validation_is_due(tmp_path, settings, updates):
    """Of the epoch's ten updates the last is left out too."""
    recent = RecentCheckpoints(str(tmp_path), every_s=0)
    settings = {"devices": 1, "max_epochs": 1, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(callbacks=[Waits(recent), recent], **settings)
    trainer.fit(Classifier(sgd), loader(), loader())
    found = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in (RECENT, BEFORE)]
    assert tuple(found) == updates


def test_training_waits_for_them_a_twentieth_of_its_time_at_most(tmp_path):
    writer = _Writer(tmp_path / BEFORE, every_s=1e-6)
    writer.begin()
    writer.waited_s = 1e-3
    assert not writer.due
    while not writer.due:
        pass
    writer.begin()
    writer.waited_s = 1e6
    assert not writer.due
    each = _Writer(tmp_path / BEFORE, every_s=0)
    each.begin()
    each.waited_s = 1e6
    assert each.due
