"""validation="shared": what all ranks' batches come to is what rank 0 alone would have logged, whoever lives."""

import os
import select
import signal

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from lwpd_lightning import LWPDStrategy, lwpd_code, schemes, uncoded
from lwpd_lightning.exchange.update import WorkerFailed
from tests.integration.models import Classifier, adam, classification, loader, quiet_trainer

PATIENCE_S = 120.0
VALIDATION = classification(107)


class Validated(Classifier):
    """Logs in all the ways that add up, and what depends on hooks of training."""

    def __init__(self):
        super().__init__(adam)
        self.net.insert(1, torch.nn.BatchNorm1d(18))
        self.net.append(torch.nn.Dropout(0.2))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.both = torchmetrics.MetricCollection(
            [
                torchmetrics.Precision(task="multiclass", num_classes=3, average="macro"),
                torchmetrics.Recall(task="multiclass", num_classes=3, average="macro"),
            ]
        )
        self.largest = torchmetrics.CatMetric()
        self.factor = 1.0

    def on_train_epoch_start(self):
        self.factor = 1.0 + self.current_epoch

    def validation_step(self, batch, batch_idx):
        output, y = self.net(batch[0]), batch[1]
        loss = self.factor * torch.nn.functional.cross_entropy(output, y)
        self.accuracy(output, y)
        self.both(output, y)
        self.largest.update(output.max(1).values)
        self.log("loss", loss, sync_dist=True)
        self.log_dict({"accuracy": self.accuracy, "step": float(self.global_step)})
        self.log_dict(self.both)
        self.log("most", output.max(), reduce_fx="max")
        self.log("least", output.min(), reduce_fx=torch.min)
        self.log("samples", float(len(y)), reduce_fx="sum")
        self.log("indices", float(batch_idx), reduce_fx="sum")
        if batch_idx == 6:  # of one rank's share
            self.log("sixth", loss)
            self.log("sixth_sum", loss, reduce_fx="sum")
            self.log("sixth_max", loss, reduce_fx="max")

    def on_validation_epoch_end(self):
        self.log("median", self.largest.compute().median())
        self.largest.reset()


class Compared(pl.Callback):
    """Validates once more by itself, whole, and compares."""

    on_workers = False

    def __init__(self, limit=11):
        self.limit, self.seen = limit, []

    def on_validation_end(self, trainer, module):
        told = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "train_loss"}
        self.seen.append(told)
        batches = list(DataLoader(VALIDATION, batch_size=10))[: self.limit]
        training = {owner: owner.training for owner in module.modules()}
        module.eval()
        with torch.no_grad():
            outputs, ys = [module.net(x) for x, _ in batches], [y for _, y in batches]
        for owner, was in training.items():
            owner.training = was
        output, y = torch.cat(outputs), torch.cat(ys)
        losses = [
            float(module.factor * torch.nn.functional.cross_entropy(o, y)) for o, y in zip(outputs, ys, strict=True)
        ]
        expected = {
            "loss": sum(loss * len(y) for loss, y in zip(losses, ys, strict=True)) / len(y),
            "accuracy": (output.argmax(1) == y).float().mean().item(),
            "most": output.max().item(),
            "least": output.min().item(),
            "samples": len(y),
            "indices": sum(range(len(batches))),
            "median": output.max(1).values.median().item(),
            "step": trainer.global_step,
            **{name: losses[6] for name in ("sixth", "sixth_sum", "sixth_max") if len(batches) > 6},
        }
        for metric in (torchmetrics.Precision, torchmetrics.Recall):
            one = metric(task="multiclass", num_classes=3, average="macro")
            expected[f"Multiclass{metric.__name__}"] = float(one(output, y))
        assert told == pytest.approx(expected, rel=1e-5)


def fit(model, strategy, *, n=4, validation=None, callbacks=(), **settings):
    pl.seed_everything(1)
    settings = {"max_epochs": 2, "val_check_interval": 4, **settings}
    trainer = quiet_trainer(devices=n, strategy=strategy, callbacks=list(callbacks), **settings)
    trainer.fit(
        model, loader(shuffle=True), DataLoader(VALIDATION, batch_size=10) if validation is None else validation
    )
    return trainer


def shared(**settings):
    return LWPDStrategy(**{"code": uncoded(4), "validation": "shared", **settings})


@pytest.mark.parametrize(
    ("strategy", "settings", "validations", "limit"),
    [
        (shared, {}, 4, 11),
        (lambda: shared(wait_for=3), {}, 4, 11),
        (lambda: shared(dedicated_coordinator=True), {"n": 5}, 4, 11),
        (lambda: shared(code=lwpd_code(4, 2, 2)), {"val_check_interval": 1.0}, 2, 11),
        (lambda: schemes.whitened(4, validation="shared"), {"accumulate_grad_batches": 3}, 4, 11),
        (shared, {"limit_val_batches": 3, "check_val_every_n_epoch": 2}, 2, 3),
        (shared, {"val_check_interval": "00:00:00:00"}, 20, 11),
    ],
    ids=["all", "K<n", "coordinator", "lwpd", "accumulated", "limited", "clock"],
)
def test_it_comes_to_what_one_rank_would_have_logged(strategy, settings, validations, limit):
    compared = Compared(limit)
    fit(Validated(), strategy(), callbacks=[compared], **settings)
    assert len(compared.seen) == validations


def test_training_goes_on_as_if_rank_0_had_validated_alone():
    models = []
    for validation in ("rank_zero", "shared"):
        models.append(Validated())
        fit(models[-1], LWPDStrategy(code=uncoded(4), validation=validation))
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value), name


class Waiting(Validated):
    """Rank 0 goes through its last batch when the others have gone through theirs, which they tell over a pipe."""

    def __init__(self, told):
        super().__init__()
        self.told, self.there = told, os.getpid()

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if os.getpid() != self.there and batch_idx >= 11 - 4:
            os.write(self.told[1], bytes([self.global_rank]))
        elif os.getpid() == self.there and self.trainer.global_step:
            assert batch_idx in (0, 4, 8)  # no other rank's
            ranks = set()
            while batch_idx == 8 and len(ranks) < 3:
                assert select.select([self.told[0]], [], [], PATIENCE_S)[0], f"only {ranks} have validated"
                ranks |= set(os.read(self.told[0], 1))


def test_each_rank_runs_its_own_batches():
    told = os.pipe()
    compared = Compared()
    try:
        fit(Waiting(told), shared(), callbacks=[compared])
    finally:
        for end in told:
            os.close(end)
    assert len(compared.seen) == 4


class Dying(Validated):
    """Worker 2's process is killed in its second validation, at its second batch."""

    def validation_step(self, batch, batch_idx):
        if self.global_rank == 2 and self.global_step == 8 and batch_idx == 6 and self.once:
            os.kill(os.getpid(), signal.SIGKILL)
        super().validation_step(batch, batch_idx)

    @property
    def once(self):
        return os.getpid() != self.there


def test_rank_0_does_the_share_of_a_worker_that_dies_in_it():
    model, compared = Dying(), Compared()
    model.there = os.getpid()
    trainer = fit(model, shared(restart_workers=False), callbacks=[compared])
    assert [failure.worker for failure in trainer.strategy.failures] == [2]
    assert len(compared.seen) == 4


class Failing(Classifier):
    def validation_step(self, batch, batch_idx):
        if batch_idx % 4 == 3:
            raise RuntimeError("no such sample")


def test_an_exception_of_a_share_ends_the_run_with_its_traceback():
    with pytest.raises((WorkerFailed, RuntimeError), match="no such sample"):
        fit(Failing(adam), shared())


class Drawing(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("x", torch.rand(()))


class Remembering(Classifier):
    def __init__(self):
        super().__init__(adam)
        self.outputs = []

    def validation_step(self, batch, batch_idx):
        self.outputs.append(self.net(batch[0]))


class OfEachStep(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("x", batch[0].mean(), on_step=True)


class Hooked(Classifier):
    def on_validation_start(self):
        pass


class Showing(pl.Callback):
    def on_validation_batch_end(self, *_):
        pass


class Averaged(torchmetrics.Metric):
    def __init__(self):
        super().__init__()
        self.add_state("mean", torch.zeros(()), dist_reduce_fx="mean")

    def update(self, value):
        self.mean = value

    def compute(self):
        return self.mean


class Unmergeable(Classifier):
    def __init__(self):
        super().__init__(adam)
        self.metric = Averaged()

    def validation_step(self, batch, batch_idx):
        self.metric.update(batch[0].mean())
        self.log("x", self.metric)


class OfSeveral(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("x", batch[0].mean())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(VALIDATION)


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        (lambda: Drawing(adam), {}, "validation_step draws random numbers, of which each rank has others"),
        (Remembering, {}, "validation_step changes outputs, of which each rank has its own"),
        (lambda: OfEachStep(adam), {}, r"self.log\('x', on_step=True\) in validation_step would show rank 0's batches"),
        (lambda: Hooked(adam), {}, "Hooked.on_validation_start would run for rank 0's batches alone"),
        (Validated, {"callbacks": [Showing()]}, "Showing.on_validation_batch_end would run for rank 0's batches alone"),
        (Unmergeable, {}, "the state 'mean' of Averaged metric has no reduction that adds up over ranks"),
        (Validated, {"limit_val_batches": 0.5}, "limit_val_batches=0.5 with validation='shared': use a number"),
        (
            Validated,
            {"validation": DataLoader(VALIDATION, batch_size=10, shuffle=True)},
            "the validation loader has a RandomSampler",
        ),
        (Validated, {"validation": DataLoader(Stream(), batch_size=10)}, "the validation loader reads a Stream"),
        (
            lambda: OfSeveral(adam),
            {"validation": [DataLoader(VALIDATION, batch_size=10)] * 2},
            r"val_dataloader\(\) gave 2 loaders",
        ),
    ],
    ids=["draws", "remembers", "on_step", "hook", "callback", "metric", "float", "shuffled", "stream", "several"],
)
def test_what_would_differ_is_refused_before_any_worker_starts(model, settings, sentence, monkeypatch):
    if model is not Unmergeable:  # which is found where states are added
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("a worker was started"))
    with pytest.raises((MisconfigurationException, RuntimeError, ValueError), match=sentence) as refused:
        fit(model(), shared(), num_sanity_val_steps=2, **settings)
    assert "validation='rank_zero'" in str(refused.value) or "use a number of batches" in str(refused.value)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"validation='all'.*'rank_zero'.*'shared'"):
        LWPDStrategy(validation="all")
