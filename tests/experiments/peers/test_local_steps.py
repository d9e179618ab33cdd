"""Local SGD and DiLoCo against all their ranks in one process; real ranks over Gloo."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from experiments.peers import DiLoCoPeer, LocalSGDPeer
from experiments.peers.shares import BLOCK, mean_in_int8
from lwpd_lightning.worker_callback import WorkerCallback
from tests.experiments.peers.callbacks import KeepParameters
from tests.experiments.peers.ranks import on_ranks
from tests.experiments.peers.reference import CLIP, RANKS, Rank, averaged
from tests.integration.models import Classifier, adam, loader, quiet_trainer, sgd

pytestmark = pytest.mark.slow
UPDATES = 11  # the tenth ends an epoch, and no H here divides it
PARAMETERS = 12 * 18 + 18 + 18 * 3 + 3


def fit(strategy, make, *callbacks, updates=UPDATES, validation=None, **settings):
    trainer = quiet_trainer(
        devices=RANKS, strategy=strategy, use_distributed_sampler=False, max_steps=updates, gradient_clip_val=CLIP,
        callbacks=list(callbacks), **settings,
    )  # fmt: skip
    trainer.fit(Classifier(make), loader(shuffle=True), validation)
    return trainer


def reference(make, seed, every, first=0, outer=None, updates=UPDATES):
    """The model that all ranks end with; ``outer``: rate and Nesterov momentum of DiLoCo's outer step, written out."""
    ranks = [Rank(r, make, seed) for r in range(RANKS)]
    common, momentum = ranks[0].flat, torch.zeros_like(ranks[0].flat)
    for update in range(updates):
        if update < first:
            gradients = averaged(ranks, update)
            for rank in ranks:
                rank.step(gradients)
            common = ranks[0].flat
            continue
        for rank in ranks:
            rank.step(rank.gradients(update))
        if (update + 1 - first) % every == 0 or update + 1 == updates:
            mean = torch.stack([rank.flat for rank in ranks]).mean(0)
            if outer is None:
                common = mean
            else:
                lr, beta = outer
                moved = common - mean
                momentum = beta * momentum + moved
                common = common - lr * (moved + beta * momentum)
            for rank in ranks:
                rank.fill(common)
    return common


def kept(folder):
    """What each rank has learnt."""
    files = sorted(folder.iterdir())
    assert len(files) == RANKS
    return [torch.cat([v.flatten() for v in torch.load(file, weights_only=True).values()]) for file in files]


@pytest.mark.parametrize(
    ("strategy", "make", "settings"),
    [
        (LocalSGDPeer(every=3), adam, {"every": 3}),
        (LocalSGDPeer(every=3, averaged_updates=4), sgd, {"every": 3, "first": 4}),
        (DiLoCoPeer(every=4), adam, {"every": 4, "outer": (0.7, 0.9)}),
        (DiLoCoPeer(every=1, lr=1.0, momentum=0.0), sgd, {"every": 1}),  # is averaging
        (DiLoCoPeer(every=2, averaged_updates=3), sgd, {"every": 2, "first": 3, "outer": (0.7, 0.9)}),
    ],
)
def test_all_ranks_end_where_their_formula_ends(tmp_path, strategy, make, settings):
    trainer = fit(strategy, make, KeepParameters(str(tmp_path)))

    first, *others = kept(tmp_path)
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, reference(make, trainer.strategy.seed, **settings), rtol=0, atol=2e-6)


def test_outer_gradients_in_int8_lose_little_and_send_a_quarter(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    trainer = fit(DiLoCoPeer(every=4, exchange_dtype="int8"), adam, KeepParameters(str(tmp_path)), updates=8)

    first, *others = kept(tmp_path)
    exact = reference(adam, trainer.strategy.seed, every=4, outer=(0.7, 0.9), updates=8)
    moved = torch.linalg.vector_norm(exact - Rank(0, adam, 0).flat)
    assert all(torch.equal(first, other) for other in others)
    assert 0 < torch.linalg.vector_norm(first - exact) < 0.02 * moved
    assert trainer.strategy.last_step.payload_bytes == RANKS * (BLOCK + 4)  # a block a rank, padded


def test_bytes_count_where_they_travel():
    class Payloads(Callback):
        def __init__(self):
            self.bytes = []

        def on_train_batch_end(self, trainer, *args):
            self.bytes.append(trainer.strategy.last_step.payload_bytes)

    payloads = Payloads()
    fit(LocalSGDPeer(every=3, averaged_updates=2), sgd, payloads, updates=9)

    assert payloads.bytes == [4 * PARAMETERS * sent for sent in (1, 1, 0, 0, 1, 0, 0, 1, 1)]


class Validated(Callback):
    """The parameters that rank 0 validates, and those that it has after that."""

    def __init__(self):
        self.models, self.afterwards = [], []

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.models.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.afterwards.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))


@pytest.mark.parametrize("strategy", [LocalSGDPeer(every=3), DiLoCoPeer(every=3)])
def test_the_model_of_the_last_exchange_is_validated_and_training_goes_on_from_ones_own(strategy):
    validated = Validated()
    trainer = fit(strategy, sgd, validated, updates=7, validation=loader(batch_size=720), val_check_interval=1)
    same = [torch.equal(a, b) for a, b in zip(validated.models, validated.models[1:], strict=False)]

    assert same == [True, False, True, True, False, False]  # exchanges after 3, 6 and the last
    torch.testing.assert_close(validated.models[0], Rank(0, sgd, 0).flat)
    assert len({tuple(model.tolist()) for model in validated.afterwards}) == 7  # each update moved it
    outer = (0.7, 0.9) if isinstance(strategy, DiLoCoPeer) else None
    expected = reference(sgd, trainer.strategy.seed, every=3, outer=outer, updates=7)
    torch.testing.assert_close(validated.models[-1], expected, rtol=0, atol=2e-6)


class StopAt(WorkerCallback):
    """Ends the fit amid a round; what each rank has then is kept after the fit's end."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == 5

    def teardown(self, trainer, pl_module, stage):
        KeepParameters(str(self.folder)).on_train_end(trainer, pl_module)


def test_ranks_of_a_fit_that_was_stopped_end_with_the_same_model(tmp_path):
    trainer = fit(DiLoCoPeer(every=4), sgd, StopAt(tmp_path), updates=-1, max_epochs=3)

    assert trainer.global_step == 5
    first, *others = kept(tmp_path)
    assert all(torch.equal(first, other) for other in others)


def test_a_mean_in_int8_is_rounded_twice(tmp_path):
    sizes = (1, BLOCK, 2 * BLOCK + 5)

    def values(rank, size):
        return torch.randn(size, generator=torch.Generator().manual_seed(10 * rank + size))

    def work(rank):
        return [mean_in_int8(values(rank, size)) for size in sizes]

    ranks = on_ranks(3, work, tmp_path)
    for at, size in enumerate(sizes):
        exact = torch.stack([values(rank, size) for rank in range(3)])
        step = exact.abs().max() / 127  # of the coarsest level; both roundings are off by half of one at most
        got = [rank[at][0] for rank in ranks]
        assert all(torch.equal(one, got[0]) for one in got)
        assert (got[0] - exact.mean(0)).abs().max() <= step
        shares = -(-size // (3 * BLOCK))
        assert ranks[0][at][1] == 3 * shares * (BLOCK + 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(LocalSGDPeer, every=0), r"every=0 is no number of updates: use 1 or more."),
        (partial(LocalSGDPeer, averaged_updates=-1), r"averaged_updates=-1 is negative: use 0 or more."),
        (
            partial(DiLoCoPeer, exchange_dtype="int4"),
            r"exchange_dtype='int4' is unknown: use one of 'float32', 'int8'.",
        ),
        (partial(DiLoCoPeer, lr=-1.0), "Invalid learning rate: -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
