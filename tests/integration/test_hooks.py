"""Whatever steers the training by a hook steers it on every rank: K = n equals a single process."""

import pytest
import torch

from lwpd_lightning import LWPDStrategy, lwpd_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.exchange.update import WorkerFailed
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration.hooked import CASES, Case, Steered, TaughtByBuffer, train

CODES = {"lwpd(4,4,2)": lambda: lwpd_code(4, 4, 2), "uncoded(2)": lambda: uncoded(2)}


# What blocks, replicated data parts and exact sums of them could spoil: the rest is the same whatever the code is.
BLOCKS = (
    "validation sets a buffer", "norm evaluated in a hook", "activation swapped", "teacher in a buffer",
    "gradients changed", "group added", "unfrozen", "frozen in mid-epoch", "growing buffer", "BackboneFinetuning",
    "ModelPruning", "sparse gradients", "accumulated", "accumulated by a moving average",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, "uncoded(2)") for name in CASES),
        *(pytest.param(name, "lwpd(4,4,2)", marks=pytest.mark.slow) for name in BLOCKS),
    ],
)
def test_hooks_act_on_every_rank(name, code):
    alone, _ = train(name, devices=1)
    coded, trainer = train(name, devices=CODES[code]().n, strategy=LWPDStrategy(code=CODES[code](), timeout_s=60))
    assert torch.linalg.vector_norm(coded - alone) <= 1e-10 * torch.linalg.vector_norm(alone)
    assert trainer.strategy.last_update.resyncs == 0
    assert not trainer.strategy.failures


class _Disturbed(TaughtByBuffer):
    """Goes astray on workers, once."""

    astray = "ema"

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        if not self.trainer.is_global_zero and self.trainer.global_step == 2:
            self.get_parameter_or_buffer(self.astray).data.add_(1.0)

    def get_parameter_or_buffer(self, name):
        return dict([*self.named_parameters(), *self.named_buffers()])[name]


@pytest.mark.parametrize("astray", ["ema", "net.0.weight"])
def test_a_worker_that_went_astray_takes_over_what_its_codeword_is_to_be_computed_on(monkeypatch, astray):
    """Rank 0's state is sent while it computes: a worker that loads it must not run its hooks twice."""
    monkeypatch.setattr(_Disturbed, "astray", astray)
    monkeypatch.setitem(CASES, "disturbed", Case(_Disturbed))
    alone, _ = train("disturbed", devices=1)
    monitor = ExchangeMonitor()
    strategy = LWPDStrategy(code=uncoded(3), timeout_s=60)
    coded, _ = train("disturbed", devices=3, strategy=strategy, callbacks=[monitor])
    assert torch.linalg.vector_norm(coded - alone) <= 1e-10 * torch.linalg.vector_norm(alone)
    assert monitor.summary()["resyncs"] >= 2


class _Hooks(WorkerCallback):
    """What each rank runs, in order, in a file of its own."""

    def __init__(self, folder):
        self.folder = folder

    def _tell(self, trainer, hook):
        with open(self.folder / str(trainer.global_rank), "a") as file:
            file.write(
                f"{hook} {trainer.current_epoch} {trainer.fit_loop.epoch_loop.batch_idx} {trainer.global_step}\n"
            )


def _telling(hook):
    return lambda self, trainer, *args: self._tell(trainer, hook)


HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_train_end",
    "on_fit_end",
)  # fmt: skip
for _hook in HOOKS:
    setattr(_Hooks, _hook, _telling(_hook))


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}], ids=["every batch", "accumulated"])
def test_every_rank_runs_the_same_hooks_in_the_same_order(tmp_path, settings):
    strategy = LWPDStrategy(code=uncoded(2), timeout_s=60)
    train("epoch start", devices=2, strategy=strategy, callbacks=[_Hooks(tmp_path)], **settings)
    rank_0, worker = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    (started,) = (line for line in rank_0 if line.startswith("on_train_start"))
    assert [started, *worker] == rank_0


class _FreezesOnWorkers(Steered):
    def on_train_epoch_start(self):
        if self.current_epoch == 1 and not self.trainer.is_global_zero:
            self.net[0].requires_grad_(False)


def test_a_worker_that_trains_something_else_ends_the_run(monkeypatch):
    monkeypatch.setitem(CASES, "freezes on workers", Case(_FreezesOnWorkers))
    with pytest.raises(
        WorkerFailed, match="worker 1 no longer consists of the parameters and buffers that rank 0 does"
    ):
        train("freezes on workers", devices=2, strategy=LWPDStrategy(code=uncoded(2), timeout_s=60))
