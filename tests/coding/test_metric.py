"""The metric is what the optimizer divides by, with a floor, and the same bits for any number of threads."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.metric import Metric
from lwpd_lightning.coding.wire import CHUNK
from tests.devices import on_each_device

pytestmark = pytest.mark.usefixtures("host")
MUON = pytest.param(
    getattr(torch.optim, "Muon", None),
    marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="a torch without Muon"),
)
SHAPES = [(30, 41), (7,), (3, 4, 2), ()]


def parameters(shapes=SHAPES, device="cpu"):
    return [Parameter(torch.zeros(shape, device=device)) for shape in shapes]


def stepped(optimizer, steps=3, skip=(), seed=0):
    """Make steps by gradients of very different sizes; parameters at some positions get none."""
    random = torch.Generator().manual_seed(seed)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        for position, p in enumerate(held):
            values = torch.randn(p.shape, generator=random) * torch.rand(p.shape, generator=random) ** 6
            p.grad = None if position in skip else values.to(p)
        optimizer.step()
    return optimizer


def laid_out(blocks, values):
    """(B, d) float64 of one tensor a parameter; NaN where there is none."""
    out, shown = torch.zeros(2, blocks.blocks, blocks.block_size, dtype=torch.float64)
    for position, of in enumerate(values):
        if of is not None:
            blocks.lay_out(position, of.double().cpu(), out=out)
            blocks.lay_out(position, torch.ones(of.shape), out=shown)
    return out.where(shown > 0, math.nan)


def reference(blocks, squares):
    """By the docstring, in float64; (B, d), NaN in the padding."""
    squares = laid_out(blocks, squares)
    shown = laid_out(blocks, [torch.ones(p.shape) for p in blocks.parameters])
    overall, out = squares.nanmean(), torch.empty_like(squares)
    for b in range(blocks.blocks):
        for start in range(0, blocks.block_size, CHUNK):
            chunk = squares[b, start : start + CHUNK]
            mean = overall if chunk.isnan().all() else chunk.nanmean()
            root = (chunk.where(~chunk.isnan(), mean) + 0.1 * mean).sqrt()
            out[b, start : start + CHUNK] = root if mean > 0 else 1.0
    return out * shown


def check(blocks, optimizer, squares):
    got, expected = Metric(blocks, optimizer).at(0).roots().double().cpu(), reference(blocks, squares)
    torch.testing.assert_close(got.where(~expected.isnan(), torch.nan), expected, rtol=1e-5, atol=0, equal_nan=True)


def corrected(beta):
    return lambda state, key: state[key] / (1 - beta ** float(state["step"]))


ESTIMATES = {
    "adam": (lambda p: torch.optim.Adam(p, betas=(0.9, 0.95)), "exp_avg_sq", corrected(0.95)),
    "adamw": (lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95)), "exp_avg_sq", corrected(0.95)),
    "amsgrad": (lambda p: torch.optim.AdamW(p, betas=(0.9, 0.5), amsgrad=True), "max_exp_avg_sq", corrected(0.5)),
    "nadam": (torch.optim.NAdam, "exp_avg_sq", corrected(0.999)),
    "radam": (torch.optim.RAdam, "exp_avg_sq", corrected(0.999)),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, alpha=0.9), "square_avg", corrected(0.9)),
    "adadelta": (lambda p: torch.optim.Adadelta(p, rho=0.8), "square_avg", corrected(0.8)),
    "adagrad": (torch.optim.Adagrad, "sum", lambda state, key: state[key] / float(state["step"])),
    "adamax": (torch.optim.Adamax, "exp_inf", lambda state, key: state[key].square()),
}


@on_each_device
@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_root_of_the_optimizers_second_moments(device, name, count):
    make, key, estimate = ESTIMATES[name]
    held = parameters(device=device)
    optimizer, blocks = make(held), BlockMap(held, count)
    stepped(optimizer)
    check(blocks, optimizer, [estimate(optimizer.state[p], key) for p in held])


def test_adafactors_is_the_matrix_that_it_divides_by():
    held = parameters([(30, 41), (7,), (3, 4, 2)])
    optimizer = stepped(torch.optim.Adafactor(held))
    squares = []
    for state in map(optimizer.state.get, held):
        if (rows := state.get("row_var")) is not None:
            squares.append(rows @ state["col_var"] / rows.mean(dim=-2, keepdim=True))
        else:
            squares.append(state["variance"])
    check(BlockMap(held, 2), optimizer, squares)


class Lion(torch.optim.Optimizer):
    """Steps by signs, and keeps an average of gradients under Adam's name for it (Chen et al., NeurIPS 2023)."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.sign(0.9 * average + 0.1 * p.grad))
                average.lerp_(p.grad, 0.01)


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, lambda p: torch.optim.SGD(p, momentum=0.9), torch.optim.ASGD, torch.optim.Rprop, Lion, MUON],
)
def test_it_is_one_where_there_are_no_second_moments(make):
    held = parameters(SHAPES[:1])
    assert Metric(BlockMap(held, 2), stepped(make(held))).at(0) is None


def test_it_is_one_before_the_first_step_and_in_chunks_of_zeros():
    held = parameters([(3 * CHUNK,)])
    optimizer, blocks = torch.optim.Adam(held), BlockMap(held, 1)
    metric = Metric(blocks, optimizer)
    assert metric.at(0) is None
    held[0].grad = torch.zeros(3 * CHUNK)
    held[0].grad[:CHUNK] = 2.0
    optimizer.step()
    assert torch.equal(metric.at(1).roots()[0, CHUNK:], torch.ones(2 * CHUNK))
    torch.testing.assert_close(metric.at(1).roots()[0, :CHUNK], torch.full((CHUNK,), 2 * 1.1**0.5))


def test_what_hardly_ever_gets_a_gradient_is_taken_for_a_tenth_of_the_others():
    held = parameters([(8, 128)])
    optimizer = torch.optim.Adam(held)
    held[0].grad = torch.ones(8, 128)
    held[0].grad[3] = 0.0
    optimizer.step()
    torch.testing.assert_close(
        Metric(BlockMap(held, 1), optimizer).at(0).roots().view(8, 128)[3], torch.full((128,), (0.1 * 7 / 8) ** 0.5)
    )


@pytest.mark.parametrize("count", [1, 2])
def test_parameters_without_state_are_taken_for_their_chunks_mean_or_all_chunks(count):
    held = parameters([(600,), (200, 3), (CHUNK * 3,), (700,)])
    optimizer = stepped(torch.optim.AdamW([held[0], *held[2:]]), skip=(1,))
    state = [optimizer.state.get(p, {}).get("exp_avg_sq") for p in held]
    assert [of is None for of in state] == [False, True, True, False]
    check(BlockMap(held, count), optimizer, [None if of is None else of / (1 - 0.999**3) for of in state])


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=6), count=st.integers(1, 4))
def test_any_sizes_of_which_any_have_state_lie_in_their_chunks(sizes, count):
    held = parameters([(1,), *((size,) for size, _ in sizes)])
    without = [position for position, (_, has) in enumerate(sizes, start=1) if not has]
    optimizer = stepped(torch.optim.Adam([p for position, p in enumerate(held) if position not in without]), 1)
    state = [optimizer.state.get(p, {}).get("exp_avg_sq") for p in held]
    check(BlockMap(held, count), optimizer, [None if of is None else of / (1 - 0.999) for of in state])


def test_parameters_that_have_made_other_numbers_of_steps_are_in_one_unit():
    held = parameters([(300,), (300,)])
    optimizer = torch.optim.Adam(held)
    for steps, of in ((5, held), (1, held[:1])):
        for _ in range(steps):
            for p in held:
                p.grad = torch.full_like(p, 2.0) if any(p is q for q in of) else None
            optimizer.step()
    torch.testing.assert_close(Metric(BlockMap(held, 1), optimizer).at(0).roots()[0], torch.full((600,), 2 * 1.1**0.5))


def test_it_is_kept_for_a_version_and_forgotten_when_told():
    held = parameters()
    optimizer = torch.optim.Adam(held)
    stepped(optimizer)
    metric, other = Metric(BlockMap(held, 1), optimizer), torch.optim.Adam(parameters())
    before = metric.at(4).roots()
    optimizer.load_state_dict(stepped(other, seed=9).state_dict())
    assert torch.equal(metric.at(4).roots(), before)
    metric.forget()
    assert not torch.allclose(metric.at(4).roots(), before)
    assert torch.equal(metric.at(4).roots(), Metric(BlockMap(held, 1), optimizer).at(0).roots())


def test_it_takes_nothing_from_the_optimizer_and_adds_nothing():
    held = parameters()
    optimizer = stepped(torch.optim.AdamW(held[:3], amsgrad=True))
    before = copy.deepcopy(optimizer.state_dict())
    Metric(BlockMap(held, 2), optimizer).at(0).roots()
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    assert held[3] not in optimizer.state


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 300), columns=st.integers(1, 400), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_number_of_threads_gives_the_same_bits_compiled_or_not(rows, columns, count, seed):
    held = parameters([(rows, columns), (rows,)])
    optimizer, threads, seen = stepped(torch.optim.Adafactor(held), 2, seed=seed), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            seen.append(Metric(BlockMap(held, count), optimizer).at(0).roots())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "compiled", lambda: None)
                seen.append(Metric(BlockMap(held, count), optimizer).at(0).roots())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from([(), (0, 3), (7,), (2, 3, 4, 4), (61, 57), (3000,)]),
            st.sampled_from([torch.float32, torch.bfloat16]),
            st.booleans(),
        ),
        min_size=1, max_size=6,
    ),
    count=st.integers(1, 4), amsgrad=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_state_of_any_dtype_and_order_in_memory_gives_the_same_bits_compiled_or_not(kinds, count, amsgrad, seed):
    held = []
    for shape, dtype, _ in kinds:
        order = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        held.append(Parameter(torch.zeros(shape, dtype=dtype).to(memory_format=order)))
    held.append(Parameter(torch.zeros(6)))  # one that always has state
    skip = [position for position, (*_, has) in enumerate(kinds) if not has]
    optimizer = stepped(torch.optim.AdamW(held, amsgrad=amsgrad), 2, skip, seed)
    blocks, seen = BlockMap(held, count), []
    for compiled in (kernels.compiled(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "compiled", lambda compiled=compiled: compiled)
            seen.append(Metric(blocks, optimizer).at(0).roots())
    assert torch.equal(*seen)


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12])
def test_it_can_be_divided_by_however_small_gradients_are(scale):
    held = parameters([(5000,)])
    optimizer = torch.optim.Adam(held)
    held[0].grad = scale * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    roots = Metric(BlockMap(held, 1), optimizer).at(0).roots()
    assert (roots > 0).all()
    assert (held[0].grad / roots).isfinite().all()
