"""What training_step logs: combined over the workers that count, and forgotten on those that keep no log."""

import multiprocessing
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics

from lwpd_lightning import LWPDStrategy, lwpd_code, uncoded
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

LOADER = {"batch_size": 72}


class Logging(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.double()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        for reduce_fx in ("mean", "sum", torch.max, "min"):
            name = reduce_fx if isinstance(reduce_fx, str) else "max"
            self.log(name, x[:, 0].mean(), sync_dist=True, on_step=True, on_epoch=True, reduce_fx=reduce_fx)
        self.log("train_loss", loss, sync_dist=True, prog_bar=True)
        self.log("mine", len(x))
        return loss


def logged(**settings):
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=3, precision="64-true", **settings)
    trainer.fit(Logging(), loader(classification(dtype=torch.float64), **LOADER))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("code", [uncoded(3), lwpd_code(4, 4, 2)], ids=str)
def test_sync_dist_combines_over_the_workers_that_count(code):
    ours, alone = logged(devices=code.n, strategy=LWPDStrategy(code=code)), logged(devices=1)
    batches = loader(classification(dtype=torch.float64), **LOADER)
    x = [x[:, 0].view(code.data_parts, -1).mean(dim=1) for x, _ in batches]
    assert ours["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-12)
    assert ours["mean_epoch"] == pytest.approx(alone["mean_epoch"], rel=1e-12)
    assert ours["mean_step"] == pytest.approx(float(x[2].mean()), rel=1e-12)
    assert ours["min_epoch"] == pytest.approx(min(float(part.min()) for part in x[:3]), rel=1e-12)
    assert ours["mine"] == 72 / code.data_parts  # without sync_dist, rank 0's data part
    if code.data_parts == code.n:  # as under DDP, over ranks
        assert ours["max_step"] == pytest.approx(float(x[2].max()), rel=1e-12)
        assert ours["sum_step"] == pytest.approx(float(x[2].sum()), rel=1e-12)


def test_a_dedicated_coordinator_logs_what_its_workers_did():
    stopping = pl.callbacks.EarlyStopping(
        "train_loss", patience=100, stopping_threshold=0.8, check_on_train_epoch_end=True
    )
    strategy = LWPDStrategy(code=uncoded(2), dedicated_coordinator=True)
    trainer = quiet_trainer(max_epochs=100, devices=3, strategy=strategy, precision="64-true", callbacks=[stopping])
    trainer.fit(Logging(), loader(classification(dtype=torch.float64), **LOADER))
    assert 0 < stopping.stopped_epoch < 99
    assert trainer.callback_metrics["mine"] == 36
    assert trainer.callback_metrics["train_loss"] < 0.8


class Counting(Classifier):
    """Keeps metrics and a list as many modules do."""

    def __init__(self):
        super().__init__(sgd)
        self.metric = torchmetrics.CatMetric()
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.metric(torch.ones(len(batch[0])))
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_epoch_end(self):
        self.losses.clear()


class Lengths(WorkerCallback):
    """The longest that each rank's lists became."""

    def __init__(self, ranks):
        self.longest = multiprocessing.get_context("fork").Array("l", 2 * ranks)

    def on_train_batch_end(self, trainer, pl_module, *args):
        rank, samples = trainer.global_rank, sum(kept.numel() for kept in pl_module.metric.value)
        self.longest[2 * rank] = max(self.longest[2 * rank], samples)
        self.longest[2 * rank + 1] = max(self.longest[2 * rank + 1], len(pl_module.losses))


def test_metrics_and_lists_start_anew_with_each_epoch_on_every_rank():
    lengths = Lengths(3)
    trainer = quiet_trainer(
        max_epochs=4, limit_train_batches=5, devices=3, strategy=LWPDStrategy(code=uncoded(3)), callbacks=[lengths]
    )
    with pytest.warns(UserWarning, match="self.log of a CatMetric in training_step shows rank 0's data part alone"):
        trainer.fit(Counting(), loader(**LOADER))
    assert list(lengths.longest) == [5 * 24, 5] * 3


def test_nothing_is_said_of_plain_values():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="self.log of a")
        logged(devices=2, strategy=LWPDStrategy(code=uncoded(2)))
