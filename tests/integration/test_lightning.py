"""What a Lightning user takes for granted still works: one coded batch is one update is one global_step."""

import contextlib
import os
import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from experiments.peers import DDPPeer
from lwpd_lightning import LWPDStrategy, lwpd_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.links.header import HEADER_BYTES
from tests.integration.models import Classifier, adam, classification, loader, quiet_trainer, sgd

BLOCK = 108 + 9 + 27 + 2  # values in a codeword of a Classifier's two blocks
READY_BYTES = HEADER_BYTES + 4  # and a flag for each parameter


def strategy(**settings):
    return LWPDStrategy(code=lwpd_code(4, 4, 2), **settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def cores():
    return os.cpu_count() or 1


def _any_error():
    return pytest.raises((ArithmeticError, RuntimeError), match=r"mistake|rank")


class Recorder(pl.Callback):
    on_workers = False

    def __init__(self):
        self.train_batches, self.validations, self.clipped = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train_batches.append((trainer.current_epoch, batch_idx, len(batch[0])))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.clipped.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm().item())


class _Breaks(Classifier):
    def training_step(self, batch, batch_idx):
        raise ArithmeticError("a rank's own mistake")


@pytest.mark.parametrize("make", [strategy, DDPPeer])
@pytest.mark.parametrize(("model", "raised"), [(Classifier, contextlib.nullcontext), (_Breaks, _any_error)])
def test_a_fit_leaves_as_many_threads_as_there_were(make, model, raised):
    before = torch.get_num_threads()
    torch.set_num_threads(cores() + 3)  # more than any rank is given
    try:
        with raised():
            fitting = quiet_trainer(devices=4, strategy=make(), max_steps=2, use_distributed_sampler=False)
            fitting.fit(model(sgd), loader())
        assert torch.get_num_threads() == cores() + 3
    finally:
        torch.set_num_threads(before)


def test_callbacks_see_ordinary_batches_and_steps():
    recorder = Recorder()
    trainer = quiet_trainer(
        devices=4, strategy=strategy(), max_epochs=2, val_check_interval=5, callbacks=[recorder], num_sanity_val_steps=2
    )
    trainer.fit(Classifier(sgd), loader(), loader())
    assert trainer.global_step == 20
    assert trainer.current_epoch == 2
    # batch_size=72 is the whole update's; rank 0's first data part of two holds half of it
    assert recorder.train_batches == [(epoch, index, 36) for epoch in range(2) for index in range(10)]
    assert recorder.validations == [5, 10, 15, 20]


def test_limits():
    recorder = Recorder()
    trainer = quiet_trainer(
        devices=4, strategy=strategy(), max_epochs=3, limit_train_batches=4, limit_val_batches=2, callbacks=[recorder]
    )
    trainer.fit(Classifier(sgd), loader(), loader())
    assert trainer.global_step == 12
    assert [index for _, index, _ in recorder.train_batches] == [0, 1, 2, 3] * 3


def test_max_time_ends_the_fit():
    trainer = quiet_trainer(devices=4, strategy=strategy(), max_epochs=-1, max_time={"seconds": 2})
    trainer.fit(Classifier(sgd), loader())
    assert trainer.global_step > 0


def test_clipping_sees_the_decoded_gradient():
    model = Classifier(sgd)
    recorder = Recorder()
    trainer = quiet_trainer(devices=4, strategy=strategy(), max_steps=1, callbacks=[recorder])
    trainer.fit(model, loader())
    x, y = (tensor[:72] for tensor in classification().tensors)
    fresh = Classifier(sgd)
    torch.nn.functional.cross_entropy(fresh.net(x), y).backward()
    assert recorder.clipped == pytest.approx(
        [torch.cat([p.grad.flatten() for p in fresh.parameters()]).norm().item()], rel=1e-5
    )


def test_early_stopping_checkpoints_and_plateau(tmp_path):
    def plateau(optimizer):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0, factor=0.5)
        return {"scheduler": scheduler, "monitor": "val_loss"}

    stopping = EarlyStopping("val_loss", patience=3, min_delta=100.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max", save_last=True)
    trainer = quiet_trainer(
        devices=4, strategy=strategy(), max_epochs=50, callbacks=[stopping, checkpoint], enable_checkpointing=True
    )
    model = Classifier(sgd, plateau)
    trainer.fit(model, loader(shuffle=True), loader())
    assert trainer.current_epoch == 4  # one best epoch, then three without improvement
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)
    restored = Classifier.load_from_checkpoint(checkpoint.last_model_path, optimizer=sgd, weights_only=False)
    assert torch.equal(weights(restored), weights(model))


def test_validate_test_predict_and_a_second_fit():
    trainer = quiet_trainer(devices=4, strategy=strategy(), max_epochs=2)
    model = Classifier(sgd)
    trainer.fit(model, loader(shuffle=True), loader())
    (validated,) = trainer.validate(model, loader(batch_size=50), verbose=False)
    (tested,) = trainer.test(model, loader(batch_size=50), verbose=False)
    predicted = torch.cat(trainer.predict(model, loader(batch_size=50)))
    assert len(predicted) == 720  # the full set, once
    assert validated == tested
    assert (predicted == classification().tensors[1]).float().mean().item() == pytest.approx(tested["val_acc"])
    before = weights(model)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loader(shuffle=True), loader())
    assert trainer.current_epoch == 4
    assert not torch.equal(before, weights(model))


def test_strategy_by_name_chooses_a_code_for_the_world_size():
    trainer = quiet_trainer(devices=4, strategy="lwpd", max_steps=2)
    trainer.fit(Classifier(sgd), loader())
    assert trainer.global_step == 2
    assert (trainer.strategy.code.n, trainer.strategy.code.k, trainer.strategy.code.t) == (4, 4, 2)
    assert (trainer.strategy.settings.compressor, trainer.strategy.settings.wire_dtype) == ("whitened", "ternary")


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [7, 10, 13])
def test_resuming_a_checkpoint_continues_the_same_trajectory(tmp_path, stop_at, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    straight = Classifier(adam)
    quiet_trainer(devices=4, strategy=strategy(), max_steps=25, max_epochs=-1).fit(straight, loader(shuffle=True))
    keep = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=stop_at)
    settings = {"callbacks": [keep], "enable_checkpointing": True}
    first = quiet_trainer(devices=4, strategy=strategy(), max_steps=stop_at + 1, max_epochs=-1, **settings)
    first.fit(Classifier(adam), loader(shuffle=True))
    resumed = Classifier(adam)
    trainer = quiet_trainer(devices=4, strategy=strategy(), max_steps=25, max_epochs=-1)
    trainer.fit(resumed, loader(shuffle=True), ckpt_path=tmp_path / "stopped.ckpt", weights_only=False)
    assert trainer.global_step == 25
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=1e-5, atol=1e-6)


def test_bfloat16_mixed_stays_near_full_precision():
    after = {}
    for precision in ("32-true", "bf16-mixed"):
        model = Classifier(sgd)
        quiet_trainer(devices=4, strategy=strategy(), max_steps=10, precision=precision).fit(model, loader())
        after[precision] = weights(model)
        assert after[precision].dtype == torch.float32
    difference = (after["32-true"] - after["bf16-mixed"]).norm() / after["32-true"].norm()
    assert 0 < difference < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("wire_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("feedback", [False, True])
def test_compressed_codewords_stay_near_full_ones(wire_dtype, feedback):
    exact, compressed = Classifier(sgd), Classifier(sgd)
    quiet_trainer(devices=4, strategy=strategy(), max_steps=10).fit(exact, loader())
    monitor = ExchangeMonitor()
    coarse = strategy(wire_dtype=wire_dtype, error_feedback=feedback)
    quiet_trainer(devices=4, strategy=coarse, max_steps=10, callbacks=[monitor]).fit(compressed, loader())
    assert 0 < (weights(exact) - weights(compressed)).norm() < 0.05 * weights(exact).norm()
    # One reducer, whose own codeword stays where it is, and rank 0 need not tell itself that it is ready.
    summary, up = monitor.summary(), wire_format(wire_dtype).nbytes(BLOCK) + READY_BYTES
    assert summary["bytes_up"] == 10 * 3 * up
    assert summary["bytes_up_per_update_per_worker"] == up


class _WithBatchNorm(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.norm = torch.nn.BatchNorm1d(12)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(self.norm(x)), y)


def test_batchnorm_statistics_are_averaged_over_contributors():
    model = _WithBatchNorm()
    quiet_trainer(devices=4, strategy=LWPDStrategy(code=uncoded(4)), max_steps=1).fit(model, loader())
    parts = classification().tensors[0][:72].chunk(4)
    expected = 0.1 * torch.stack([part.mean(dim=0) for part in parts]).mean(dim=0)
    torch.testing.assert_close(model.norm.running_mean, expected)
    variance = 0.9 + 0.1 * torch.stack([part.var(dim=0) for part in parts]).mean(dim=0)
    torch.testing.assert_close(model.norm.running_var, variance)
    assert model.norm.num_batches_tracked == 1


class _WithDropout(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.drop = torch.nn.Dropout(0.5)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x + 0.3 * torch.randn_like(x) + 0.3 * np.random.rand() + 0.3 * random.random(), y

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(self.drop(x) + np.random.rand()), y)


class _Gradients(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]))


def test_redundant_workers_draw_the_same_dropout_and_augmentation(monkeypatch):
    """Two codes of the same data parts decode the same gradient only if every copy of a task is the same numbers."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    seen = []
    for code in (lwpd_code(8, 4, 2), lwpd_code(4, 4, 2)):
        gradients = _Gradients()
        trainer = quiet_trainer(devices=code.n, strategy=LWPDStrategy(code=code), max_steps=2, callbacks=[gradients])
        trainer.fit(_WithDropout(), loader())
        seen.append(torch.stack(gradients.seen))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-6)


class _Tricky(Classifier):
    """Tied, frozen and unused parameters, and a mixture of dtypes."""

    def __init__(self):
        super().__init__(sgd)
        self.tied = torch.nn.Linear(12, 12, bias=False)
        self.again = torch.nn.Linear(12, 12, bias=False)
        self.again.weight = self.tied.weight
        self.frozen = torch.nn.Parameter(torch.ones(12), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.full((5,), 3.0))
        self.coarse = torch.nn.Parameter(torch.ones(12, dtype=torch.bfloat16))

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = self.again(self.tied(x)) + self.frozen * x * self.coarse.float()
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)


def test_tied_frozen_unused_and_mixed_parameters():
    torch.manual_seed(0)
    model = _Tricky()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = _Tricky()
    alone.load_state_dict(start)
    quiet_trainer(devices=4, strategy=strategy(), max_steps=5).fit(model, loader())
    quiet_trainer(devices=1, max_steps=5).fit(alone, loader())
    assert torch.equal(model.unused, torch.full((5,), 3.0))  # no gradient, so no weight decay either
    assert torch.equal(model.frozen, torch.ones(12))
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name].float(), tensor.float(), rtol=1e-4, atol=2e-2 if name == "coarse" else 1e-6
        )


def test_a_dedicated_coordinator_computes_nothing():
    model, alone = Classifier(sgd), Classifier(sgd)
    monitor = ExchangeMonitor()
    dedicated = LWPDStrategy(code=lwpd_code(4, 2, 2), dedicated_coordinator=True)
    quiet_trainer(devices=5, strategy=dedicated, max_steps=8, callbacks=[monitor]).fit(model, loader())
    quiet_trainer(devices=1, max_steps=8).fit(alone, loader())
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-4, atol=1e-6)
    assert len(monitor.summary()["inclusion_rate"]) == 4
    assert monitor.summary()["arrivals_mean"] == 4


class _ClipWeights(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.clamp_(-0.1, 0.1)


class _Steps(Classifier):
    """Its loss depends on where the worker believes the fit to be."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.global_step + 10 * self.current_epoch + batch_idx)


@pytest.mark.parametrize("callbacks", [[], [_ClipWeights()]], ids=["published_ahead", "weights_change_after_the_step"])
def test_workers_know_step_and_epoch(callbacks):
    slow = lambda parameters: torch.optim.SGD(parameters, lr=1e-4)  # noqa: E731
    model, alone = _Steps(slow), _Steps(slow)
    settings = {"max_epochs": 2, "limit_train_batches": 3}
    quiet_trainer(devices=4, strategy=strategy(), callbacks=callbacks, **settings).fit(model, loader())
    quiet_trainer(devices=1, callbacks=callbacks, **settings).fit(alone, loader())
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-4, atol=1e-6)


def test_every_update_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor, lr = ExchangeMonitor(), LearningRateMonitor()
    trainer = quiet_trainer(
        devices=4,
        strategy=strategy(wait_for=3),
        max_steps=12,
        logger=logger,
        callbacks=[monitor, lr],
        log_every_n_steps=50,
    )
    trainer.fit(Classifier(sgd), loader())
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    wanted = ["loss", "lr", "wait_s", "compute_s", "update_s", "bytes_up", "bytes_down", "arrivals", "decoded_share"]
    assert {f"exchange/{name}" for name in wanted} <= set(columns)
    assert {
        f"exchange/{series}/{worker}" for series in ("arrived", "staleness", "inclusion") for worker in range(4)
    } <= set(columns)
    at = columns.index("exchange/arrivals")
    assert len([line for line in lines[1:] if line.split(",")[at]]) == 12
    summary = monitor.summary()
    assert summary["updates"] == 12
    assert summary["samples"] == 12 * 72
    assert 3 <= summary["arrivals_mean"] <= 4
    # All that count but one reducer send their codeword; a worker that is ready too late to count has said so too.
    travelled = round(12 * summary["arrivals_mean"]) - 12
    ready, rest = divmod(summary["bytes_up"] - travelled * 4 * BLOCK, READY_BYTES)
    assert rest == 0
    assert 2 * 12 <= ready <= 3 * 12


def test_loader_workers_and_augmentation_keep_the_trajectory(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    after = []
    for settings in ({}, {"num_workers": 1, "persistent_workers": True}):
        model = Classifier(sgd)
        data = _Augmented()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quiet_trainer(devices=2, strategy=LWPDStrategy(code=lwpd_code(2, 2, 2)), max_epochs=2).fit(
                model, loader(data, shuffle=True, **settings)
            )
        after.append(weights(model))
    assert torch.equal(*after)


class _Augmented(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.y = classification().tensors

    def __len__(self):
        return 216

    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn(12), self.y[index]
