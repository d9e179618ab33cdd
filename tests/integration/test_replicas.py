"""Every worker is at rank 0's parameters, bit for bit, at every version, whoever changes them and whatever fails."""

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, local_code, lwpd_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration.models import Classifier, adam, loader, quiet_trainer, sgd

UPDATES = 25


class Seen(WorkerCallback):
    """What each worker computes at, version by version, in memory that forked workers share."""

    def __init__(self, model, workers, versions=2 * UPDATES):
        parameters, buffers = (sum(t.numel() for t in of) for of in (model.parameters(), model.buffers()))
        self.there = torch.zeros(versions, workers, dtype=torch.bool).share_memory_()
        self.parameters = torch.zeros(versions, workers, parameters).share_memory_()
        self.buffers = torch.zeros(versions, workers, buffers).share_memory_()
        self.resyncs = []

    def on_codeword_start(self, trainer, worker, version):
        module = trainer.lightning_module
        with torch.no_grad():
            self.there[version, worker] = True
            self.parameters[version, worker] = torch.cat([p.flatten() for p in module.parameters()])
            if self.buffers.shape[-1]:
                self.buffers[version, worker] = torch.cat([b.flatten().float() for b in module.buffers()])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.is_global_zero:
            self.resyncs.append(trainer.strategy.last_update.resyncs)

    def check(self):
        """All that computed a version that rank 0 computed too were at its state; returns how many computed each.

        Versions that were published ahead of a change of the weights are none of rank 0's.
        """
        versions = self.there[:, 0].nonzero().flatten().tolist()
        for version in versions:
            for worker in self.there[version].nonzero().flatten().tolist():
                assert torch.equal(self.parameters[version, worker], self.parameters[version, 0]), (version, worker)
                assert torch.equal(self.buffers[version, worker], self.buffers[version, 0]), (version, worker)
        first, last = self.parameters[0, 0], self.parameters[versions[-1], 0]
        assert (last - first).norm() > 0.05 * first.norm()
        return self.there[versions].sum(dim=1).tolist()


class Normalised(Classifier):
    def __init__(self, optimizer, scheduler=None):
        super().__init__(optimizer, scheduler)
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(12), *self.net)


def wobbling(optimizer):
    """A schedule that comes back to earlier rates, stepped within epochs."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 1.0, 1.0, 0.1][step % 5])
    return {"scheduler": schedule, "interval": "step"}


def groups(parameters):
    """Two groups with settings of their own."""
    first, *others = parameters
    return torch.optim.AdamW([{"params": [first], "lr": 0.02}, {"params": others, "weight_decay": 0.1}], lr=0.01)


SKETCH = {"code": local_code(3, data_parts=3, blocks=2), "error_feedback": True, "stale": "drop"}


NORM, VALUE = {"gradient_clip_val": 0.3}, {"gradient_clip_val": 0.02, "by": "value"}


# Clipping is of decoded gradients, whatever they came in; each exchange has a norm to agree on at least.
@pytest.mark.parametrize(
    ("optimizer", "exchange", "clip"),
    [
        *((sgd, {"code": uncoded(3)}, clip) for clip in ({}, NORM, VALUE)),
        (adam, {"code": uncoded(3), "update_dtype": "bfloat16"}, NORM),
        (sgd, {"code": lwpd_code(3, 3, 3), "update_dtype": "int8", "wire_dtype": "int8"}, NORM),
        (sgd, {"code": uncoded(3), "update_dtype": "ternary", "error_feedback": True}, NORM),
        *(
            (
                groups,
                {"code": uncoded(3), "update_dtype": "int8", "wire_dtype": "bfloat16", "error_feedback": True},
                clip,
            )
            for clip in ({}, NORM, VALUE)
        ),
        (sgd, {**SKETCH, "update_dtype": "int8", "wire_dtype": "int8"}, NORM),
    ],
)
def test_workers_make_rank_0s_steps(optimizer, exchange, clip):
    clip = {**clip}
    if by := clip.pop("by", None):
        clip["gradient_clip_algorithm"] = by
    model = Normalised(optimizer, wobbling)
    seen = Seen(model, 3)
    strategy = LWPDStrategy(**exchange)
    trainer = quiet_trainer(devices=3, strategy=strategy, max_steps=UPDATES, max_epochs=-1, callbacks=[seen], **clip)
    trainer.fit(model, loader(shuffle=True))
    assert seen.check() == [3] * UPDATES
    assert sum(seen.resyncs) == 0
    assert seen.buffers[UPDATES - 1, 0].norm() > 0


# What changes the model beside the optimizer's step on decoded gradients.


class HalveGradients(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.is_global_zero:
            for p in pl_module.parameters():
                p.grad.mul_(0.5)


class _ClipWeights(pl.Callback):
    """As many scripts do it: autograd's version counters see nothing of it."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for p in pl_module.parameters():
            p.data.clamp_(-0.2, 0.2)


class _Once(pl.Callback):
    """Rewinds a layer in the middle of the fit."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            with torch.no_grad():
                pl_module.net[0].weight.mul_(-0.5)


class _AtEpochStart(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        for p in pl_module.parameters():
            p.data.mul_(0.9)


@pytest.mark.parametrize("optimizer", [sgd, pytest.param(adam, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("callback", "asked"), [(HalveGradients, True), (_ClipWeights, False), (_Once, False), (_AtEpochStart, False)]
)
def test_whatever_changes_the_model_reaches_the_workers(callback, asked, optimizer):
    model, alone = Classifier(optimizer), Classifier(optimizer)
    seen, monitor = Seen(model, 4), ExchangeMonitor()
    settings = {"max_steps": UPDATES, "max_epochs": -1}
    trainer = quiet_trainer(
        devices=4, strategy=LWPDStrategy(code=lwpd_code(4, 4, 2)), callbacks=[callback(), seen, monitor], **settings
    )
    trainer.fit(model, loader())
    quiet_trainer(devices=1, callbacks=[callback()], **settings).fit(alone, loader())
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    assert seen.check() == [4] * UPDATES
    assert monitor.summary()["resyncs"] == sum(seen.resyncs)
    # A worker that ends elsewhere gets whole states for longer and longer before it tries again.
    assert (0 < sum(seen.resyncs) <= 3 * 5) if asked else (sum(seen.resyncs) == 0)


class _SkipsSteps(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if (epoch + batch_idx) % 3 == 1:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


def test_a_step_that_the_module_leaves_out_is_left_out_everywhere():
    model, alone = _SkipsSteps(adam), _SkipsSteps(adam)
    seen = Seen(model, 4, versions=4 * UPDATES)
    settings = {"max_epochs": 3}
    trainer = quiet_trainer(devices=4, strategy=LWPDStrategy(code=lwpd_code(4, 4, 2)), callbacks=[seen], **settings)
    trainer.fit(model, loader())
    quiet_trainer(devices=1, **settings).fit(alone, loader())
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    computed = seen.check()
    assert set(computed) == {4}
    assert sum(seen.resyncs) == 0
