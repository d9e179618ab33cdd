"""1-bit Adam against DeepSpeed's algorithm for all ranks in one process, one parameter at a time."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from experiments.peers import DDPPeer, OnebitAdamPeer
from experiments.peers.onebit_adam import OnebitAdam
from tests.experiments.peers.callbacks import KeepParameters
from tests.experiments.peers.ranks import on_ranks
from tests.experiments.peers.reference import RANKS, Rank, averaged
from tests.experiments.peers.test_local_steps import fit, kept
from tests.integration.models import sgd

pytestmark = pytest.mark.slow
BETAS, LR, DECAY, EPS = (0.8, 0.95), 0.01, 0.1, 1e-8
adamw = partial(torch.optim.AdamW, lr=LR, betas=BETAS, weight_decay=DECAY)
adam_l2 = partial(torch.optim.Adam, lr=LR, betas=BETAS, weight_decay=DECAY)
WARMUP, UPDATES = 4, 13


def compressed(values, used, error):
    """Magnitude times sign of values and error, and the error that is left; of the first ``used`` values."""
    total = values[:used] + error
    if not used:
        return torch.zeros_like(values), error
    sent = total.norm() / used**0.5 * torch.where(total >= 0, 1.0, -1.0)
    return torch.nn.functional.pad(sent, (0, len(values) - used)), total - sent


def reference(make, seed):
    """The parameters of all ranks."""
    ranks = [Rank(r, make, seed) for r in range(RANKS)]
    decoupled = make is adamw
    for update in range(WARMUP):
        gradients = averaged(ranks, update)
        for rank in ranks:
            rank.step(gradients)
    states = [ranks[0].optimizer.state[p] for p in ranks[0].parameters]
    momenta = [state["exp_avg"].flatten().clone() for state in states]
    denominators = [(state["exp_avg_sq"] / (1 - BETAS[1] ** WARMUP)).sqrt().flatten() + EPS for state in states]
    padded = [-(-len(m) // (8 * RANKS)) * 8 * RANKS for m in momenta]
    worker_errors = [[torch.zeros(len(m)) for m in momenta] for _ in range(RANKS)]
    used = [[max(0, min(len(m) - s * size // RANKS, size // RANKS)) for s in range(RANKS)]
            for m, size in zip(momenta, padded, strict=True)]  # fmt: skip
    server_errors = [[torch.zeros(one) for one in of] for of in used]
    for update in range(WARMUP, UPDATES):
        for rank in ranks:
            rank.clip(rank.gradients(update))
        for at, momentum in enumerate(momenta):
            sent = []
            for r, rank in enumerate(ranks):
                p = rank.parameters[at]
                gradient = p.grad.flatten() + (0 if decoupled else DECAY) * p.detach().flatten()
                moved = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
                got, worker_errors[r][at] = compressed(moved, len(moved), worker_errors[r][at])
                sent.append(torch.nn.functional.pad(got, (0, padded[at] - len(got))))
            shares = torch.stack(sent).mean(0).chunk(RANKS)
            means = []
            for server, share in enumerate(shares):
                mean, server_errors[at][server] = compressed(share, used[at][server], server_errors[at][server])
                means.append(mean)
            momenta[at] = torch.cat(means)[: len(momentum)]
            step = LR / (1 - BETAS[0] ** (update + 1)) * momenta[at] / denominators[at]
            for rank in ranks:
                p = rank.parameters[at].detach()
                p.mul_(1 - LR * DECAY if decoupled else 1).sub_(step.view_as(p))
    return ranks[0].flat


@pytest.mark.parametrize("make", [adamw, adam_l2])
def test_all_ranks_end_where_the_formula_ends(tmp_path, make):
    trainer = fit(OnebitAdamPeer(warmup_updates=WARMUP), make, KeepParameters(str(tmp_path)), updates=UPDATES)

    first, *others = kept(tmp_path)
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, reference(make, trainer.strategy.seed), rtol=0, atol=1e-5)


def test_the_warm_up_is_adam_under_ddp(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    fit(OnebitAdamPeer(warmup_updates=UPDATES), adamw, KeepParameters(str(tmp_path / "onebit")), updates=UPDATES)
    fit(DDPPeer(), adamw, KeepParameters(str(tmp_path / "ddp")), updates=UPDATES)

    torch.testing.assert_close(kept(tmp_path / "onebit")[0], kept(tmp_path / "ddp")[0], rtol=0, atol=1e-6)


def test_a_bit_a_value_and_a_magnitude_for_each_parameter_travel():
    trainer = fit(OnebitAdamPeer(warmup_updates=1), adamw, updates=3)

    assert trainer.strategy.last_step.payload_bytes == (224 + 32 + 64 + 32) // 8 + RANKS * 4 * 4
    state = trainer.optimizers[0].state[next(iter(trainer.lightning_module.parameters()))]
    assert state["exp_avg"].shape == (18, 12)
    assert len(state["exp_avg"].abs().unique()) <= RANKS  # a checkpoint holds the common momentum
    assert float(state["step"]) == 3


def test_what_had_no_gradient_in_the_warm_up_stays(tmp_path):
    """A bit cannot say 0, and hardly any variance would make of it a step of any length."""

    def work(rank):
        values = torch.nn.Parameter(torch.ones(20))
        optimizer = torch.optim.Adam([values], lr=0.1)

        def compute():
            values.grad = torch.randn(20, generator=torch.Generator().manual_seed(rank))
            values.grad[:5] = 0

        compute()
        dist.all_reduce(values.grad)
        optimizer.step()
        onebit = OnebitAdam(optimizer, warmup_updates=1)
        for _ in range(5):
            compute()
            onebit.step()
        return values.detach()

    for values in on_ranks(2, work, tmp_path):
        assert torch.equal(values[:5], torch.ones(5))
        assert (values[5:] != 1).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (sgd, "SGD is not supported by 1-bit Adam: use torch.optim.Adam or AdamW."),
        (partial(adamw, amsgrad=True), "amsgrad=True is not supported by 1-bit Adam: use False."),
    ],
)
def test_other_optimizers_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(OnebitAdamPeer(), make)


def test_a_variance_needs_an_update():
    with pytest.raises(ValueError, match="warmup_updates=0 leaves no variance: use 1 or more"):
        OnebitAdamPeer(warmup_updates=0)
