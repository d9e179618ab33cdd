"""Coarse codewords in the optimizer's own metric, through real processes: all ranks step alike, and it trains."""

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, lwpd_code, schemes
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

BATCHES = 10  # of `loader`'s epoch


class Losses(pl.Callback):
    """The loss of every update, and how many ranks had to take rank 0's state over."""

    on_workers = False

    def __init__(self):
        self.losses, self.resyncs = [], 0

    def fell(self):
        """Epoch against epoch, each of which is all data: some batches are harder than others."""
        return sum(self.losses[-BATCHES:]) < sum(self.losses[:BATCHES])

    def on_train_batch_end(self, trainer, *args):
        update = trainer.strategy.last_update
        self.losses.append(update.loss)
        self.resyncs += update.resyncs


def fitted(model, strategy=None, updates=20, data=None, **settings):
    """Fit; asserts that all ranks stepped alike and that the loss fell."""
    strategy = strategy or schemes.whitened(3)
    watch = Losses()
    trainer = quiet_trainer(
        devices=strategy.code.n, strategy=strategy, max_steps=updates, max_epochs=-1, callbacks=[watch], **settings
    )
    trainer.fit(model, data if data is not None else loader(shuffle=True))
    assert trainer.global_step == updates
    assert not trainer.strategy.failures
    assert watch.resyncs == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert watch.fell()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


OPTIMIZERS = {
    "adamw": adamw,
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.03),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "sgd": sgd,
}
DAILY = ["adamw", "adafactor", "sgd"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DAILY else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_it_trains_with_any_optimizer(name):
    fitted(Classifier(OPTIMIZERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "precision"), [(1, "32-true"), (2, "bf16-mixed"), (3, "64-true"), (4, "bf16-true")]
)
def test_the_default_of_every_size_and_precision_trains(devices, precision):
    watch = Losses()
    how = {"devices": devices, "precision": precision, "callbacks": [watch]}
    trainer = quiet_trainer(strategy="lwpd", max_steps=20, max_epochs=-1, **how)
    data = classification(dtype=torch.float64 if precision == "64-true" else torch.float32)
    trainer.fit(Classifier(adamw), loader(data, shuffle=True))
    assert (trainer.strategy.settings.compressor == "whitened") == (devices > 1)
    assert watch.resyncs == 0
    assert watch.fell()


class Varied(Classifier):
    """Two groups, a frozen, an unused, a tied and an embedding's weight, and sizes that nothing divides."""

    def __init__(self):
        super().__init__(adamw)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.embedding = torch.nn.Embedding(501, 7)
            self.mixed = torch.nn.Linear(7, 7)
            self.out = torch.nn.Linear(7, 12)
            self.unused = torch.nn.Linear(5, 5)
            self.frozen = torch.nn.Linear(12, 12).requires_grad_(False)
        self.again = self.mixed

    def training_step(self, batch, batch_idx):
        x, y = batch
        rows = (x[:, 0].abs() * 40).long().clamp(max=500)
        hidden = self.again(torch.tanh(self.mixed(self.embedding(rows))))
        loss = torch.nn.functional.cross_entropy(self.net(self.frozen(x) + self.out(hidden)), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        inner = {id(p) for p in self.net.parameters()}
        groups = [
            {"params": list(self.net.parameters()), "lr": 0.02, "betas": (0.9, 0.95)},
            {"params": [p for p in self.parameters() if id(p) not in inner], "weight_decay": 0.1},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)}


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (lambda: schemes.whitened(3), {"gradient_clip_val": 0.5}),
        (
            lambda: LWPDStrategy(
                lwpd_code(4, 4, 2), wait_for=3, stale="drop", wire_dtype="sign", update_dtype="ternary",
                compressor="whitened",
            ),
            {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        ),
    ],
)  # fmt: skip
def test_parameters_of_all_kinds(strategy, settings):
    fitted(Varied(), strategy(), updates=30, **settings)


@pytest.mark.parametrize("compressor", ["whitened", "rotated"])
def test_the_same_seed_gives_the_same_bits(compressor, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    first, second = (fitted(Classifier(adamw), schemes.whitened(3, compressor=compressor)) for _ in range(2))
    assert torch.equal(first, second)


class _Spoil(pl.Callback):
    """On all workers, once: other weights, and another optimizer's state, by which codewords would be divided."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 7 and not trainer.is_global_zero:
            for p in pl_module.parameters():
                p.data.mul_(1.1)
                trainer.optimizers[0].state[p]["exp_avg_sq"].mul_(torch.linspace(1, 9, p.numel()).view(p.shape))


def test_a_worker_that_takes_a_state_over_goes_on_as_one_that_was_never_lost(monkeypatch):
    """Its metric of the version is that of the state which it has taken over, at the same version."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    trained = []
    for spoilt in (False, True):
        model, watch, strategy = Classifier(adamw), Losses(), schemes.whitened(3)
        callbacks = [watch, _Spoil()] if spoilt else [watch]
        trainer = quiet_trainer(devices=3, strategy=strategy, max_steps=20, max_epochs=-1, callbacks=callbacks)
        trainer.fit(model, loader(shuffle=True))
        assert (watch.resyncs > 0) == spoilt
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*trained)
