"""What a peer trains, on which batches, when it is late, and what is left when a rank breaks: real ranks."""

import os
import signal
from functools import partial

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from experiments.peers import DDPPeer, PowerSGDPeer
from experiments.peers.launcher import RankFailed
from lwpd_lightning import LWPDStrategy, uncoded
from lwpd_lightning.data import CodedLoader
from lwpd_lightning.injection import FaultInjector
from lwpd_lightning.injection.stragglers import Pareto, SlowWorkers
from lwpd_lightning.worker_callback import WorkerCallback
from tests.experiments.peers.callbacks import RecordDelays
from tests.integration.models import Classifier, adam, classification, loader, quiet_trainer, sgd
from tests.integration.test_oracle import UPDATES, parameters_after, single_process, step_lr

pytestmark = pytest.mark.slow
RANKS = 4
PEERS = {
    "ddp": (DDPPeer, 1e-5),
    "ddp_bf16": (partial(DDPPeer, gradient_dtype="bfloat16"), 2e-2),
    "powersgd": (partial(PowerSGDPeer, rank=99, min_compression_rate=0.0), 1e-4),  # full rank: only rounding is left
}


def trainer_of(strategy, **settings):
    return quiet_trainer(devices=RANKS, strategy=strategy, use_distributed_sampler=False, **settings)


def fit(strategy, *callbacks, updates=6, model=None):
    trainer = trainer_of(strategy, max_steps=updates, callbacks=list(callbacks))
    trainer.fit(model or Classifier(sgd), loader(shuffle=True), loader())
    return trainer


@pytest.fixture(autouse=True)
def no_trace():
    """A fit leaves neither a process group nor an environment that the next one would take for its own."""
    before = dict(os.environ)
    yield
    assert not dist.is_initialized()
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    assert {name: os.environ.get(name) for name in names} == {name: before.get(name) for name in names}


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_equals_a_single_process(name, optimizer):
    make, tolerance = PEERS[name]
    data, batches = classification(), loader(classification(), shuffle=True)
    trainer = trainer_of(make(), max_steps=UPDATES, gradient_clip_val=0.5)
    model = Classifier(optimizer, lambda o: {"scheduler": step_lr(o)})

    together = parameters_after(trainer, model, batches)

    order = CodedLoader(batches, data_parts=RANKS, parts=(0,), seed=trainer.strategy.seed)
    alone = single_process(optimizer, torch.float32, data, order, gradient_clip_val=0.5)
    assert trainer.global_step == UPDATES
    difference = torch.linalg.vector_norm(together - alone) / torch.linalg.vector_norm(alone)
    assert difference <= tolerance
    assert name != "ddp_bf16" or difference > 1e-5  # it did round


def test_low_rank_learns_and_is_not_the_average(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    start = torch.cat([p.detach().flatten() for p in Classifier(sgd).parameters()])
    trainer = fit(PowerSGDPeer(rank=1, min_compression_rate=0.0), updates=100)
    exact = fit(DDPPeer(), updates=100)

    low, full = (torch.cat([p.detach().flatten() for p in t.lightning_module.parameters()]) for t in (trainer, exact))
    assert trainer.callback_metrics["val_acc"] > 0.8
    assert (low - full).norm() > 0.01 * (full - start).norm()


@pytest.mark.parametrize("stop_at", [7, 10])  # in the middle of an epoch, and at its end
def test_a_fit_goes_on_from_a_checkpoint(tmp_path, monkeypatch, stop_at):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    whole, resumed = Classifier(adam), Classifier(adam)
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop_at, save_top_k=-1)
    trainer_of(DDPPeer(), max_steps=14, callbacks=[keep], enable_checkpointing=True).fit(whole, loader(shuffle=True))

    trainer = trainer_of(DDPPeer(), max_steps=14)
    trainer.fit(resumed, loader(shuffle=True), ckpt_path=tmp_path / f"step={stop_at}.ckpt", weights_only=False)

    assert trainer.global_step == 14
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


class Profile(WorkerCallback):
    """Records what rank 0 hands to all-reduces in its fourth and fifth update, and its other collectives."""

    def __init__(self):
        self.bytes, self.others = 0, []

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 3 and trainer.is_global_zero:
            self.profiler = torch.profiler.profile(record_shapes=True)
            self.profiler.start()

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5 and trainer.is_global_zero:
            self.profiler.stop()
            for event in self.profiler.events():
                if event.name == "gloo:all_reduce":
                    self.bytes += sum(torch.Size(shape).numel() for shape in event.input_shapes if shape)
                elif event.name.startswith("gloo:"):
                    self.others.append(event.name)


@pytest.mark.parametrize(
    ("strategy", "numbers"),
    [
        (DDPPeer(), 12 * 18 + 18 + 18 * 3 + 3),
        (DDPPeer("bfloat16"), 12 * 18 + 18 + 18 * 3 + 3),
        (PowerSGDPeer(rank=1), (12 + 18) + 18 + (18 + 3) + 3),
    ],
)
def test_bytes_are_counted_as_torch_hands_them_over(strategy, numbers):
    profile = Profile()
    fit(strategy, profile)

    assert profile.bytes == 2 * numbers
    assert profile.others == []  # nothing else is waited for between two updates
    width = 2 if getattr(strategy, "gradient_dtype", "") == "bfloat16" else 4
    assert strategy.last_step.payload_bytes == numbers * width


@pytest.mark.parametrize("make", [DDPPeer, PowerSGDPeer, partial(LWPDStrategy, code=uncoded(RANKS))])
def test_every_scheme_meets_the_same_delays(tmp_path, make):
    model = Pareto(least_s=0.5, seed=11)
    fit(make(), RecordDelays(model, tmp_path), updates=5)

    for rank in range(RANKS):
        told = [line.split() for line in (tmp_path / str(rank)).read_text().splitlines()]
        assert [(int(worker), int(step)) for worker, step, _ in told[:5]] == [(rank, step) for step in range(5)]
        assert [float(delay) for _, _, delay in told[:5]] == [model.delay_s(rank, step, 0.0) for step in range(5)]


def test_a_slow_ranks_factor_applies_to_what_it_computed_last(tmp_path):
    fit(DDPPeer(), RecordDelays(SlowWorkers(slowdown={1: 3.0}), tmp_path), updates=4)

    first, *later = [float(line.split()[2]) for line in (tmp_path / "1").read_text().splitlines()]
    assert first == 0
    assert all(delay > 0 for delay in later)
    assert {line.split()[2] for line in (tmp_path / "2").read_text().splitlines()} == {"0.0"}


# What is refused before a rank is forked.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DDPPeer("float16"), r"gradient_dtype='float16' is unknown: use one of 'float32', 'bfloat16'."),
        (lambda: PowerSGDPeer(rank=0), r"rank=0 approximates nothing: use 1 or more."),
        (lambda: PowerSGDPeer(uncompressed_updates=-1), r"uncompressed_updates=-1 is negative: use 0 or more."),
        (
            lambda: trainer_of(DDPPeer(), accumulate_grad_batches=2).fit(Classifier(sgd), loader()),
            r"accumulate_grad_batches=2 is not supported by a peer",
        ),
        (
            lambda: quiet_trainer(devices=2, strategy=DDPPeer()).fit(Classifier(sgd), loader()),
            r"use_distributed_sampler=True is not supported by a peer",
        ),
        (
            lambda: fit(DDPPeer(), RecordDelays(SlowWorkers(slowdown={4: 2.0}), None)),
            r"slowdown names worker 4, but the run has workers 0 to 3",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_a_fork(monkeypatch, make, sentence):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a rank was forked"))
    with pytest.raises(Exception, match=sentence):
        make()


# Ranks that break.


class Failing(Classifier):
    def __init__(self, rank: int) -> None:
        super().__init__(sgd)
        self.failing = rank

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == self.failing and self.global_step == 3:
            raise ArithmeticError("a rank's own mistake")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("make", [DDPPeer, PowerSGDPeer])
def test_another_ranks_exception_fails_the_fit_with_its_traceback(make):
    with pytest.raises(RankFailed, match=r"(?s)rank 2 failed:.*in training_step.*a rank's own mistake"):
        fit(make(), model=Failing(2))


def test_rank_0s_exception_is_raised_as_it_is():
    with pytest.raises(ArithmeticError, match="a rank's own mistake"):
        fit(DDPPeer(), model=Failing(0))


@pytest.mark.parametrize("make", [DDPPeer, PowerSGDPeer])
def test_a_killed_rank_is_named(make):
    with pytest.raises(RankFailed, match="rank 3 was killed by SIGKILL"):
        fit(make(), FaultInjector({3: 2}))


class ExitLate(WorkerCallback):
    def teardown(self, trainer, pl_module, stage):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_breaks_after_the_last_step_is_told_too():
    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
        fit(DDPPeer(), ExitLate())
