"""A module's state as bytes and back: every tensor once, in its dtype, wherever the module keeps it now."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.header import ProtocolError
from lwpd_lightning.exchange.state import StateLayout

CPU = torch.device("cpu")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
quick = settings(deadline=None, max_examples=60)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
kinds = st.lists(
    st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(["trained", "frozen", "buffer", "transient"])),
    max_size=8,
)


def random_module(kinds, seed):
    """A tree of modules that holds tensors of all these kinds."""
    random = torch.Generator().manual_seed(seed)
    root = owner = nn.Module()
    for position, (shape, dtype, kind) in enumerate(kinds):
        values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=random).to(dtype)
        name = f"t{position}"
        if kind in ("trained", "frozen") and (dtype.is_floating_point or dtype.is_complex):
            owner.register_parameter(name, nn.Parameter(values, requires_grad=kind == "trained"))
        else:
            owner.register_buffer(name, values, persistent=kind != "transient")
        if position % 3 == 2:
            owner.add_module("child", child := nn.Module())
            owner = child
    return root


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def packed(layout):
    buffer = layout.buffer()
    layout.pack(buffer)
    return buffer


def assert_same(left, right):
    for one, other in zip(tensors(left), tensors(right), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@quick
@given(kinds, st.integers(0, 99))
def test_everything_arrives_in_another_process_module(kinds, seed):
    sender, receiver = random_module(kinds, seed), random_module(kinds, seed + 1)
    down, up = StateLayout.everything(sender, CPU), StateLayout.everything(receiver, CPU)
    assert down.digest() == up.digest()
    up.unpack(packed(down))
    assert_same(sender, receiver)


@quick
@given(kinds, st.integers(0, 99))
def test_a_version_leaves_frozen_parameters_out(kinds, seed):
    sender, receiver = random_module(kinds, seed), random_module(kinds, seed + 1)
    frozen = [p.clone() for p in receiver.parameters() if not p.requires_grad]
    StateLayout.per_version(receiver, CPU).unpack(packed(StateLayout.per_version(sender, CPU)))
    still = [p for p in receiver.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, still, strict=True))
    for one, other in zip(tensors(sender), tensors(receiver), strict=True):
        if one.requires_grad or not isinstance(one, nn.Parameter):
            assert torch.equal(one, other)


@quick
@given(kinds, st.integers(0, 99))
def test_the_payload_is_what_it_says(kinds, seed):
    layout = StateLayout.everything(random_module(kinds, seed), CPU)
    assert packed(layout).numel() == layout.nbytes


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight
        self.again = self.output


def test_tied_parameters_travel_once():
    tied = Tied()
    assert StateLayout.everything(tied, CPU).nbytes == 16 * 4  # 15 floats, padded to 16 bytes
    layout = StateLayout.per_version(tied, CPU)
    payload = packed(layout)
    with torch.no_grad():
        tied.embedding.weight.zero_()
    layout.unpack(payload)
    assert tied.output.weight is tied.embedding.weight
    assert tied.output.weight.abs().sum() > 0


def test_a_buffer_that_the_module_replaced_is_found():
    sender, receiver = nn.Module(), nn.Module()
    for module in (sender, receiver):
        module.register_buffer("count", torch.zeros((), dtype=torch.int64))
    down, up = StateLayout.per_version(sender, CPU), StateLayout.per_version(receiver, CPU)
    sender.count = sender.count + 3
    receiver.count = receiver.count - 1
    up.unpack(packed(down))
    assert receiver.count.item() == 3


def test_parameters_keep_their_identity_and_their_gradients():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    weight, layout = layer.weight, StateLayout.per_version(layer, CPU)
    layout.unpack(torch.zeros(layout.nbytes, dtype=torch.uint8))
    assert layer.weight is weight
    assert weight.requires_grad
    assert torch.equal(weight, torch.zeros(2, 2))
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_transposed_memory_is_no_matter():
    sender, receiver = nn.Linear(3, 2), nn.Linear(3, 2)
    sender.weight.data = torch.randn(3, 2).T
    StateLayout.everything(receiver, CPU).unpack(packed(StateLayout.everything(sender, CPU)))
    assert torch.equal(sender.weight, receiver.weight)


@quick
@given(st.integers(-40, 40).filter(bool))
def test_another_size_is_refused_and_changes_nothing(surplus):
    layer = nn.Linear(2, 2)
    before, layout = copy.deepcopy(layer), StateLayout.everything(layer, CPU)
    with pytest.raises(ProtocolError, match=f"{max(0, layout.nbytes + surplus)} bytes, this model has {layout.nbytes}"):
        layout.unpack(torch.zeros(max(0, layout.nbytes + surplus), dtype=torch.uint8))
    assert_same(layer, before)


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(3, 2, bias=False),
        nn.Linear(2, 3),
        nn.Linear(3, 2, dtype=torch.float64),
        nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)),
        nn.BatchNorm1d(2),
    ],
    ids=repr,
)
def test_the_digest_tells_other_models(other):
    digest = StateLayout.everything(nn.Linear(3, 2), CPU).digest()
    assert StateLayout.everything(nn.Linear(3, 2), CPU).digest() == digest
    assert StateLayout.everything(other, CPU).digest() != digest
    assert len(digest) == 32


# Statistics of normalisation layers.


def normalised():
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)
    )


def test_only_running_statistics_count_as_statistics():
    model = normalised()
    model.register_buffer("mine", torch.zeros(1000))
    assert StateLayout.statistics(model, CPU).nbytes == 16 + 16 + 16  # mean, variance, and a padded count
    assert StateLayout.statistics(nn.Linear(3, 4), CPU).nbytes == 0


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 6), st.integers(0, 99))
def test_statistics_average_and_counts_take_the_largest(workers, seed):
    torch.manual_seed(seed)
    models = [normalised() for _ in range(workers)]
    for steps, model in enumerate(models):
        for _ in range(steps % 3 + 1):
            model(torch.randn(5, 3))
    payloads = [packed(StateLayout.statistics(model, CPU)) for model in models]
    target = normalised()
    weights = [p.clone() for p in target.parameters()]
    StateLayout.statistics(target, CPU).average(payloads)
    norms = [model[1] for model in models]
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in norms]).mean(dim=0)
        torch.testing.assert_close(getattr(target[1], name), mean)
    assert target[1].num_batches_tracked == min(3, workers)
    assert all(torch.equal(a, b) for a, b in zip(weights, target.parameters(), strict=True))


def test_one_workers_statistics_arrive_exactly():
    source, target = normalised().double(), normalised().double()
    source(torch.randn(5, 3, dtype=torch.float64))
    StateLayout.statistics(target, CPU).average([packed(StateLayout.statistics(source, CPU))])
    assert torch.equal(source[1].running_var, target[1].running_var)


def test_no_payloads_change_nothing():
    target = normalised()
    before = copy.deepcopy(target)
    StateLayout.statistics(target, CPU).average([])
    assert_same(target, before)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_rounded_parameters_travel_beside_exact_buffers(name):
    model = nn.Sequential(nn.Linear(70, 30), nn.BatchNorm1d(30), nn.Linear(30, 7).requires_grad_(False))
    wire = wire_format(name)
    layout, other = StateLayout.per_version(model, CPU, wire), copy.deepcopy(model)
    exact = StateLayout.per_version(model, CPU)
    model[1].running_mean.copy_(torch.randn(30))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape))
    StateLayout.per_version(other, CPU, wire).unpack(packed(layout))
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if not mine.requires_grad:
            assert not torch.equal(mine, theirs), key  # travels once, with everything
            continue
        mine = mine.detach()
        within = {"float32": 0 * mine, "bfloat16": mine.abs() / 256, "int8": mine.abs().max() / 254 * (1 + 1e-5)}[name]
        assert ((mine - theirs).abs() <= within).all()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    saved = 4 * trained - sum(wire.nbytes(p.numel()) for p in model.parameters() if p.requires_grad)
    assert abs(exact.nbytes - layout.nbytes - saved) <= 16 * 6  # alignment
    with pytest.raises(ProtocolError, match="state of"):
        exact.unpack(packed(layout)) if name != "float32" else exact.unpack(packed(layout)[1:])
