"""A module's state as bytes and back: every tensor once, in its dtype, wherever the module keeps it now."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lwpd_lightning.exchange.state import (
    _PIECE_BYTES,
    MoreThanData,
    StateLayout,
    checksum,
    device_hash,
    from_bytes,
    to_bytes,
)
from lwpd_lightning.links.header import ProtocolError
from tests.devices import on_cuda

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
def test_buffers_travel_without_parameters(kinds, seed):
    sender, receiver = random_module(kinds, seed), random_module(kinds, seed + 1)
    before = [p.detach().clone() for p in receiver.parameters()]
    StateLayout.buffers(receiver, CPU).unpack(packed(StateLayout.buffers(sender, CPU)))
    assert all(torch.equal(a, b) for a, b in zip(before, receiver.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(sender.buffers(), receiver.buffers(), strict=True))


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
    layout = StateLayout.everything(tied, CPU)
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
    down, up = StateLayout.buffers(sender, CPU), StateLayout.buffers(receiver, CPU)
    sender.count = sender.count + 3
    receiver.count = receiver.count - 1
    up.unpack(packed(down))
    assert receiver.count.item() == 3


def test_parameters_keep_their_identity_and_their_gradients():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    weight, layout = layer.weight, StateLayout.everything(layer, CPU)
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


# The checksum.

tensors_of_any_layout = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(FLOATS)), min_size=1, max_size=4
)


def parameters_of(drawn, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random).to(dtype) for shape, dtype in drawn]


def seen_by_device(parameters):
    """What a GPU would compute, on the CPU."""
    return device_hash(parameters).tolist()


hashes = pytest.mark.parametrize("hashed", [checksum, seen_by_device], ids=["host", "device"])


@hashes
@quick
@given(drawn=tensors_of_any_layout, seed=st.integers(0, 99), data=st.data())
def test_the_checksum_follows_from_the_values_alone_and_sees_one_flipped_bit(hashed, drawn, seed, data):
    parameters = parameters_of(drawn, seed)
    known = hashed(parameters)
    elsewhere = [torch.cat([torch.zeros(3, dtype=p.dtype), p.flatten()])[3:].view(p.shape) for p in parameters]
    assert hashed(elsewhere) == known  # unaligned views of larger buffers
    transposed = [p.T.contiguous().T if p.dim() == 2 else p for p in parameters]
    assert hashed(transposed) == known
    filled = [p for p in parameters if p.numel()]
    if filled:
        changed = data.draw(st.sampled_from(range(len(filled))))
        bits = filled[changed].view(-1).view(torch.uint8)
        position, bit = data.draw(st.integers(0, bits.numel() - 1)), data.draw(st.integers(0, 7))
        bits[position] ^= 1 << bit
        assert hashed(parameters) != known


def test_the_checksum_is_a_signed_number_of_64_bits():
    seen = [checksum([torch.tensor([value])]) for value in range(64)]
    assert all(-(2**63) <= number < 2**63 for number in seen)
    assert min(seen) < 0 < max(seen)
    assert len(set(seen)) == 64


@hashes
@quick
@given(rows=st.integers(2, 40), columns=st.integers(1, 9), dtype=st.sampled_from(FLOATS), data=st.data())
def test_rows_that_change_places_are_seen(hashed, rows, columns, dtype, data):
    weight = torch.arange(rows * columns).view(rows, columns).to(dtype)
    order = data.draw(st.permutations(range(rows)))
    known = hashed([weight])
    assert (hashed([weight[order]]) == known) == torch.equal(weight[order], weight)
    assert (hashed([weight.roll(1, dims=0)]) == known) == torch.equal(weight.roll(1, dims=0), weight)
    assert (hashed([weight.flip(1)]) == known) == (columns == 1)


@hashes
@pytest.mark.parametrize("entries", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("dtype", FLOATS)
def test_changes_by_the_least_there_is_are_seen_however_many(hashed, dtype, entries):
    generator = torch.Generator().manual_seed(entries)
    weight = torch.randn(60, 50, generator=generator).to(dtype)
    bits = weight.view(-1).view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    known, seen, changes = hashed([weight]), set(), set()
    for _ in range(300):
        where = torch.randperm(bits.numel(), generator=generator)[:entries]
        by = 2 * torch.randint(0, 2, (entries,), generator=generator, dtype=bits.dtype) - 1
        changes.add(frozenset(zip(where.tolist(), by.tolist(), strict=True)))
        bits[where] += by
        seen.add(str(hashed([weight])))
        bits[where] -= by
    assert hashed([weight]) == known
    assert str(known) not in seen
    assert len(seen) == len(changes) > 250


@hashes
@pytest.mark.parametrize("entries", [1, 2, 3, 4, 64])
def test_signs_of_zeros_are_seen_wherever_they_are(hashed, entries):
    """Bits that a sum loses: two of them add up to 2^64."""
    generator = torch.Generator().manual_seed(entries)
    known = str(hashed([torch.zeros(4000)]))
    for _ in range(200):
        weight = torch.zeros(4000)
        weight[torch.randperm(4000, generator=generator)[:entries]] = -0.0
        assert str(hashed([weight])) != known


@hashes
def test_the_checksum_tells_which_parameter_holds_what(hashed):
    first, second = torch.randn(4), torch.randn(4)
    assert hashed([first, second]) != hashed([second, first])
    assert hashed([torch.tensor([0.0])]) != hashed([torch.tensor([-0.0])])
    assert hashed([first, torch.zeros(0), second]) == hashed([first, torch.zeros(0), second])


def test_the_checksum_knows_where_a_tensor_ends_and_how_it_is_read():
    zeros = [
        [torch.zeros(4)], [torch.zeros(5)], [torch.zeros(2), torch.zeros(2)], [torch.zeros(2, 2)], [torch.zeros(4, 1)],
        [torch.zeros(8, dtype=torch.bfloat16)], [torch.zeros(4), torch.zeros(0)], [torch.zeros(0), torch.zeros(4)],
    ]  # fmt: skip
    assert len({checksum(parameters) for parameters in zeros}) == len(zeros)


@on_cuda
def test_a_gpu_hashes_as_the_cpu_would_and_its_checksum_sees_as_much():
    parameters = [torch.randn(7), torch.randn(3000, 1000), torch.randn(5, dtype=torch.float64)]
    there = [p.cuda() for p in parameters]
    assert device_hash(there).tolist() == seen_by_device(parameters)
    known = checksum(there)
    assert checksum([p.T.contiguous().T if p.dim() == 2 else p for p in there]) == known
    for p in there:
        bits = p.view(-1).view(torch.uint8)
        bits[-1] ^= 1
        assert checksum(there) != known
        bits[-1] ^= 1
    assert checksum(there[::-1]) != known
    assert checksum([p.view(-1) for p in there]) != known


def test_pieces_of_a_gpu_end_nowhere_in_particular():
    """Tensors far longer and far shorter than a piece, and what changes at the borders."""
    words = _PIECE_BYTES // 4
    parameters = [torch.randn(5), torch.randn(2 * words + 3), torch.randn(words - 8), torch.ones(3, dtype=torch.uint8)]
    known = seen_by_device(parameters)
    assert len(known) == 4
    for tensor in parameters:
        flat = tensor.view(torch.uint8)
        for position in {0, flat.numel() - 1, *(p for p in (_PIECE_BYTES - 21, _PIECE_BYTES - 20) if p < flat.numel())}:
            flat[position] ^= 1
            assert seen_by_device(parameters) != known
            flat[position] ^= 1
    assert seen_by_device(parameters) == known


def test_the_checksum_sees_what_is_done_to_data():
    layer = nn.Linear(3, 2)
    known = checksum(layer.parameters())
    layer.weight.data.mul_(2)
    assert checksum(layer.parameters()) != known


# What is neither parameter nor buffer.


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_an_optimizers_state_travels(optimizer):
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    optimizers = [optimizer(layer.parameters(), lr=0.1, **momentum(optimizer)) for layer in layers]
    for _ in range(3):
        layers[0](torch.randn(4, 3)).square().sum().backward()
        optimizers[0].step()
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers[1].load_state_dict(from_bytes(to_bytes(optimizers[0].state_dict()), CPU))
    for layer, of in zip(layers, optimizers, strict=True):
        for p in layer.parameters():
            p.grad = torch.full_like(p, 0.3)
        of.step()
    assert checksum(layers[0].parameters()) == checksum(layers[1].parameters())


def momentum(optimizer):
    return {"momentum": 0.9} if optimizer is torch.optim.SGD else {}


class _Code:
    def __reduce__(self):
        return print, ("run on load",)


@pytest.mark.parametrize(
    "value", [_Code(), {"state": [_Code()]}, nn.Linear(1, 1), print], ids=["code", "state", "layer", "print"]
)
def test_nothing_but_data_is_read(value, capsys):
    try:
        payload = to_bytes(value)
    except AttributeError:
        pytest.skip("cannot even be written")
    with pytest.raises(MoreThanData):
        from_bytes(payload, CPU)
    assert capsys.readouterr().out == ""
