"""Who was asked to add up and dies, is late, or cannot hold what rank 0 holds: real processes, real signals."""

import math
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, gradient_code, local_code, uncoded
from lwpd_lightning.callbacks import ExchangeMonitor
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.exchange.update import WorkerFailed
from lwpd_lightning.exchange.worker import Worker
from lwpd_lightning.links.header import Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.reduction.decision import Decision, share_out
from lwpd_lightning.reduction.reduction import Reduction
from lwpd_lightning.worker_callback import WorkerCallback
from tests.commands import PATIENCE_S, ForkedJob
from tests.integration.models import Classifier, adam, loader, quiet_trainer, sgd
from tests.integration.test_replicas import HalveGradients, Seen

JOB = [sys.executable, str(Path(__file__).parent / "job.py")]
ROOT = Path(__file__).parents[2]
UPDATES, DEATH = 15, 5  # decision number 6 is version 5's first
_GATE_S = 60


class Wide(Classifier):
    """With codewords long enough for several reducers."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(12, 2000), torch.nn.Tanh(), torch.nn.Linear(2000, 3))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_asked(monkeypatch, chosen, when):
    """The worker that ``chosen`` picks from version 5's decision is killed ``when`` it should do its share."""
    begin = Reduction.begin

    def deadly(reduction, decision):
        mine = reduction.ranks.me == chosen(decision) and decision.number == DEATH + 1
        if mine and when == "before":
            die()
        begin(reduction, decision)
        if mine:
            die()

    monkeypatch.setattr(Reduction, "begin", deadly)


def whole(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("model", [pytest.param(Classifier, marks=pytest.mark.slow), Wide])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("chosen", [lambda d: d.workers[0], lambda d: d.workers[-2]], ids=["first", "last"])
def test_an_update_is_decided_again_without_the_one_that_died(monkeypatch, model, when, chosen):
    """The code decodes exactly from any three, so that the run still equals a single process."""
    die_when_asked(monkeypatch, chosen, when)
    coded, alone = model(sgd), model(sgd)
    seen, monitor = Seen(coded, 4), ExchangeMonitor()
    strategy = LWPDStrategy(code=gradient_code(4, stragglers=1), decoder="exact", stale="drop", restart_workers=False)
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=UPDATES, max_epochs=-1, callbacks=[seen, monitor])
    trainer.fit(coded, loader())
    quiet_trainer(devices=1, max_steps=UPDATES, max_epochs=-1).fit(alone, loader())
    torch.testing.assert_close(whole(coded), whole(alone), rtol=1e-4, atol=1e-5)
    (failure,) = monitor.summary()["failures"]
    assert failure["reason"] == "was killed by SIGKILL"
    assert failure["update"] in (DEATH, DEATH + 1)
    assert seen.check() == [4] * (DEATH + 1) + [3] * (UPDATES - DEATH - 1)
    assert sum(seen.resyncs) == 0


def test_codewords_that_came_after_a_decision_count_when_it_is_decided_again(monkeypatch):
    """Workers 3 and 4 are ready when 0, 1 and 2 have been decided on; then worker 1 dies, and nobody else comes."""
    context = multiprocessing.get_context("fork")
    asked, ready, changed = context.Value("q", 0), context.Value("q", 0), context.Condition()
    begin, say = Reduction.begin, Worker._say

    def await_(condition):
        with changed:
            assert changed.wait_for(condition, _GATE_S)

    def note(counter):
        with changed:
            counter.value += 1
            changed.notify_all()

    def deadly(reduction, decision):
        if reduction.ranks.me == 1 and decision.number == 1:
            note(asked)
            await_(lambda: ready.value == 2)
            die()
        if not (reduction.ranks.me == 2 and decision.number == 1):  # its part alone would do where it is the reducer
            begin(reduction, decision)

    def told(worker, *args):
        say(worker, *args)
        if worker._worker in (3, 4):
            note(ready)

    class Late(WorkerCallback):
        def on_codeword_end(self, trainer, worker, version, compute_s):
            if worker in (3, 4) and version == 0:
                await_(lambda: asked.value)

    monkeypatch.setattr(Reduction, "begin", deadly)
    monkeypatch.setattr(Worker, "_say", told)
    model, monitor = Classifier(sgd), ExchangeMonitor()
    strategy = LWPDStrategy(code=uncoded(5), wait_for=3, stale="drop", timeout_s=20, restart_workers=False)
    trainer = quiet_trainer(devices=5, strategy=strategy, max_steps=3, callbacks=[monitor, Late()])
    trainer.fit(model, loader(batch_size=70))
    assert trainer.global_step == 3
    assert [failure["worker"] for failure in monitor.summary()["failures"]] == [1]


@pytest.mark.parametrize(
    ("op", "lie", "reason"),
    [
        (Op.SUM, lambda header, *payloads: (header, payloads[0][:-4], *payloads[1:]), r"^worker 1 sent \d+ bytes for"),
        (Op.READY, lambda header, *payloads: (header, payloads[0], payloads[1][1:]), "^READY with 0 and 3 bytes$"),
        (Op.READY, lambda header, *payloads: (header._replace(worker=2), *payloads), "in the name of worker 2$"),
        (Op.READY, lambda header, *payloads: (header._replace(compute_s=math.nan), *payloads), "^READY after nan s$"),
    ],
    ids=["part", "flags", "name", "seconds"],
)
def test_a_worker_that_says_what_cannot_be_is_an_erasure(monkeypatch, op, lie, reason):
    pack, parent = Messages.pack, os.getpid()

    def lying(messages, header, *payloads):
        if (header.op, header.worker) == (op, 1) and os.getpid() != parent and header.version == DEATH:
            header, *payloads = lie(header, *payloads)
        return pack(messages, header, *payloads)

    monkeypatch.setattr(Messages, "pack", lying)
    # The small model has one reducer: worker 1, until it is gone.
    reducer = lambda decision, size: share_out(size, (1 if 1 in decision.workers else 2,))  # noqa: E731
    monkeypatch.setattr(Decision, "slices", reducer)
    model, monitor = Classifier(sgd), ExchangeMonitor()
    seen = Seen(model, 4)
    strategy = LWPDStrategy(code=uncoded(4), timeout_s=20, restart_workers=False)
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=UPDATES, max_epochs=-1, callbacks=[seen, monitor])
    trainer.fit(model, loader())
    (failure,) = monitor.summary()["failures"]
    assert failure["worker"] == 1
    assert re.search(reason, failure["reason"]), failure["reason"]
    assert seen.check()[-1] == 3


@pytest.mark.slow
def test_ranks_that_share_no_memory_go_on_too():
    """Reruns: slices and parts travel between the processes. Both runs decode exactly, so they end alike."""
    norms = []
    for arguments in (["--start=fork"], ["--start=rerun", "--die-when-asked", "before"]):
        command = [*JOB, "--updates=12", "--workers=3", "--exact", "--wide", *arguments]
        with ForkedJob(command, env={"PYTHONPATH": str(ROOT)}) as job:
            result = job.wait(PATIENCE_S)
            assert result.exit_code == 0, result.output
            assert ("is lost after update 5 (was killed by SIGKILL)" in result.output) == (len(arguments) > 1)
            assert result.output.count("UPDATE ") == 12
            norms.append(float(result.output.rsplit("DONE ", 1)[1]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


# Late.


class Hold(WorkerCallback):
    """Worker 3's codeword of version 0 is ready only when version ``until`` has closed; then all are waited for."""

    def __init__(self, until):
        context = multiprocessing.get_context("fork")
        self.until, self._closed, self._changed = until, context.Value("q", -1), context.Condition()

    def on_codeword_end(self, trainer, worker, version, compute_s):
        if worker == 3 and version == 0:
            with self._changed:
                assert self._changed.wait_for(lambda: self._closed.value >= self.until, _GATE_S)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not trainer.is_global_zero:
            return
        with self._changed:
            self._closed.value = trainer.strategy.last_update.version
            self._changed.notify_all()
        if trainer.strategy.last_update.version == self.until:
            trainer.strategy._fit._coordinator._rule.wait_for = 4


@pytest.mark.parametrize("stale", ["apply", "drop"])
@pytest.mark.parametrize(("until", "asks"), [(0, False), (9, True)])
def test_a_worker_later_than_the_window_takes_over_rank_0s_state(monkeypatch, stale, until, asks):
    model = Classifier(adam)
    seen, hold = Seen(model, 4), Hold(until)
    strategy = LWPDStrategy(code=uncoded(4), wait_for=3, stale=stale, timeout_s=30)
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=UPDATES, max_epochs=-1, callbacks=[seen, hold])
    trainer.fit(model, loader())
    assert trainer.global_step == UPDATES
    seen.check()
    assert seen.there[until + 2 : UPDATES, 3].all()
    assert not seen.there[1 : until + 1, 3].any()
    assert sum(seen.resyncs) == asks


# What a dropped codeword carried.


class _Linear(pl.LightningModule):
    """Its gradient on a batch is the batch's mean, wherever the weight is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return (batch[0] @ self.weight).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class _Books:
    """What each worker computed, what left its memory with which decision, and what is still there.

    In memory that forked workers share; entries go by version and worker.
    """

    def __init__(self, monkeypatch, workers, size):
        def zeros():
            return torch.zeros(2 * UPDATES, workers, size, dtype=torch.float64).share_memory_()

        self.computed, self.sent, self.memory = zeros(), zeros(), zeros()[0]
        self.weights = torch.zeros(2 * UPDATES, workers, dtype=torch.float64)
        add, settle, commit = ErrorFeedback.add, Reduction._settle, Reduction.commit

        def added(feedback, part, factor):
            add(feedback, part, factor)
            # Which version it is does not matter to a sum.
            self.computed[0, feedback._worker] += feedback._blocks.parameters[0].grad
            self.memory[feedback._worker] = feedback.memory.flatten()

        def keep(of, version_of):
            def kept(reduction, what):
                before, version = reduction.sender.memory.clone(), version_of(what)
                of(reduction, what)
                me, after = reduction.ranks.me, reduction.sender.memory
                self.sent[version, me] += (before - after).flatten()
                self.memory[me] = after.flatten()

            return kept

        def begun(reduction, decision):
            if reduction.ranks.me == 0:
                self.weights[decision.version, decision.workers] = decision.weights[0]
            begin(reduction, decision)

        begin = Reduction.begin
        monkeypatch.setattr(ErrorFeedback, "add", added)
        monkeypatch.setattr(Reduction, "_settle", keep(settle, lambda decision: decision.version))
        monkeypatch.setattr(Reduction, "commit", keep(commit, lambda number: number - 1))
        monkeypatch.setattr(Reduction, "begin", begun)


@pytest.mark.parametrize("update_dtype", ["int8", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("wait_for", [2, 4])
def test_with_feedback_what_comes_too_late_is_not_lost(monkeypatch, wait_for, blocks, update_dtype):
    """All that a worker computed was sent or lies in its memory; all that was sent was stepped, with its weight."""
    books, hold, monitor = _Books(monkeypatch, 4, 40), Hold(UPDATES - 4), ExchangeMonitor()
    model = _Linear()
    data = torch.utils.data.TensorDataset(torch.randn(48, 40, dtype=torch.float64))
    strategy = LWPDStrategy(
        code=local_code(4, data_parts=4, blocks=blocks), wait_for=wait_for, stale="drop", wire_dtype="int8",
        update_dtype=update_dtype, error_feedback=True,
    )  # fmt: skip
    trainer = quiet_trainer(
        devices=4, strategy=strategy, precision="64-true", max_steps=UPDATES, max_epochs=-1,
        callbacks=[monitor, *([hold] if wait_for < 4 else [])],
    )  # fmt: skip
    trainer.fit(model, loader(data, batch_size=12))
    torch.testing.assert_close(books.computed[0], books.sent.sum(dim=0) + books.memory, rtol=0, atol=1e-9)
    stepped = torch.einsum("vw,vwp->p", books.weights, books.sent)
    torch.testing.assert_close(-model.weight.detach(), stepped, rtol=0, atol=1e-9)
    if wait_for < 4:
        assert monitor.summary()["dropped_codewords"] > 0
        first = int(books.weights[:, 3].nonzero()[0])
        assert first > UPDATES - 4  # worker 3's codeword of version 0 was dropped, and counts with a later one
    assert books.memory.abs().max() > 0


@pytest.mark.parametrize("update_dtype", ["ternary", "int8", "bfloat16"])
def test_with_feedback_what_packing_the_sum_loses_is_not_lost_where_codewords_lose_nothing(monkeypatch, update_dtype):
    """With float64 codewords all that is ever left in a memory is what its worker lost of a sum that it added up."""
    books, model = _Books(monkeypatch, 4, 40), _Linear()
    data = torch.utils.data.TensorDataset(torch.randn(48, 40, dtype=torch.float64))
    strategy = LWPDStrategy(code=uncoded(4), update_dtype=update_dtype, error_feedback=True)
    trainer = quiet_trainer(devices=4, strategy=strategy, precision="64-true", max_steps=UPDATES, max_epochs=-1)
    trainer.fit(model, loader(data, batch_size=12))
    torch.testing.assert_close(books.computed[0], books.sent.sum(dim=0) + books.memory, rtol=0, atol=1e-9)
    stepped = torch.einsum("vw,vwp->p", books.weights, books.sent)
    torch.testing.assert_close(-model.weight.detach(), stepped, rtol=0, atol=1e-9)
    assert books.memory.abs().max() > 0


# What workers cannot hold.


class _Odd(torch.optim.SGD):
    """Its state holds what is neither tensor nor number."""

    def state_dict(self):
        return {**super().state_dict(), "shape": Path("somewhere")}


def test_an_optimizer_whose_state_cannot_travel_fails_the_run_where_it_would_have_to():
    """Workers that make the same steps need none of it; one that came elsewhere does."""
    trainer = quiet_trainer(
        devices=2, strategy=LWPDStrategy(code=uncoded(2)), max_steps=3, callbacks=[HalveGradients()]
    )
    with pytest.raises(WorkerFailed, match=r"the state of _Odd holds more than tensors, numbers and plain containers"):
        trainer.fit(Classifier(lambda parameters: _Odd(parameters, lr=0.1)), loader())
