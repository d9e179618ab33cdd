"""Whitened codewords add up as plain ones do, and come back as the gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.compressor import COMPRESSORS
from lwpd_lightning.coding.wire import wire_format
from tests.devices import on_each_device

CODES = [
    uncoded(3), lwpd_code(8, 4, 2), lwpd_code(4, 4, 2), local_code(6, data_parts=2, blocks=3), gradient_code(4, 1),
    local_code(3, data_parts=3, blocks=1),
]  # fmt: skip


def gradients(blocks, seed):
    random = torch.Generator().manual_seed(seed)
    for p in blocks.parameters:
        p.grad = (torch.randn(p.shape, generator=random) * torch.rand(p.shape, generator=random) ** 3).to(p)


def made(code, shapes, name="whitened", device="cpu", dtype=torch.float32):
    """Blocks whose optimizer has made two steps, and what each rank holds."""
    blocks = BlockMap([Parameter(torch.zeros(shape, device=device, dtype=dtype)) for shape in shapes], code.blocks)
    optimizer = torch.optim.AdamW(blocks.parameters)
    for seed in (1, 2):
        gradients(blocks, seed)
        optimizer.step()
    sides = [
        COMPRESSORS[name].make(code, worker, blocks, one_version=True, optimizer=optimizer, seed=3)
        for worker in range(code.n)
    ]
    return blocks, [sender for sender, _ in sides], sides[0][1]


def codewords(code, blocks, senders, version, factor=1.0):
    """Each worker's codeword, of data parts' gradients that are the same for all."""
    made = []
    for worker, sender in enumerate(senders):
        sender.begin(version)
        for part in code.parts(worker):
            gradients(blocks, 100 + part)
            sender.add(part, factor)
        made.append(sender.codeword().clone())
        assert torch.equal(sender.codeword(), made[-1])
    return torch.stack(made)


def weights_of(code):
    """(n, B) float64: with what all codewords are the sum of the data parts' gradients."""
    blocks = torch.eye(code.blocks, dtype=torch.float64).repeat(code.data_parts, 1)
    return torch.linalg.pinv(code.generator.T) @ blocks


shapes = st.lists(
    st.one_of(st.tuples(st.integers(1, 2500)), st.tuples(st.integers(1, 60), st.integers(1, 60)), st.just(())),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(code=st.sampled_from(CODES), shapes=shapes, version=st.integers(0, 2**40), name=st.sampled_from(
    ["whitened", "rotated"]
))  # fmt: skip
def test_all_codewords_decode_to_what_plain_ones_do(code, shapes, version, name):
    blocks, senders, receiver = made(code, shapes, name)
    weights = receiver.weights(weights_of(code), version)
    reference, plain, linear = made(code, shapes, "plain")
    sums = weights.float() @ codewords(code, blocks, senders, version)
    receiver.gradient(sums, version, [True] * len(shapes))
    got = blocks.gather().clone()
    kept = sums.clone()
    receiver.gradient(sums, version, [True] * len(shapes))  # again
    assert torch.equal(blocks.gather(), got)
    assert torch.equal(sums, kept)
    receiver.gradient(sums.clone(), version, [True] * len(shapes), views=True)
    assert torch.equal(blocks.gather(), got)
    linear.gradient(weights.float() @ codewords(code, reference, plain, version), version, [True] * len(shapes))
    expected = reference.gather()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_device_makes_the_same(device, dtype):
    code, shapes = lwpd_code(4, 4, 2), [(60, 50), (7,), (3, 4, 2), ()]
    blocks, senders, receiver = made(code, shapes, device=device, dtype=dtype)
    weights = receiver.weights(weights_of(code), 5).to(device, blocks.dtype)
    sums = weights @ codewords(code, blocks, senders, 5)
    receiver.gradient(sums, 5, [True] * 4)
    reference, plain, linear = made(code, shapes, "plain", device=device, dtype=dtype)
    linear.gradient(weights @ codewords(code, reference, plain, 5), 5, [True] * 4)
    got, expected = blocks.gather().double(), reference.gather().double()
    assert (got - expected).norm() < (1e-2 if dtype == torch.bfloat16 else 1e-6) * expected.norm()


def test_scaled_losses_and_float_wires_make_no_difference():
    code = uncoded(3)
    blocks, senders, receiver = made(code, [(2000,)])
    plain = codewords(code, blocks, senders, 7)
    scaled = codewords(code, blocks, senders, 7, factor=0.25)
    torch.testing.assert_close(scaled * 4, plain)
    wire = wire_format("float32")
    assert torch.equal(senders[1].settle(wire, wire.pack(plain[1]), slice(5, 9)), scaled[1, 5:9])
    assert not senders[1].state_dict()
    assert not receiver.state_dict()


def test_a_forgotten_metric_is_read_again():
    code = uncoded(2)
    blocks, senders, receiver = made(code, [(2000,)])
    before = codewords(code, blocks, senders[:1], 7)
    optimizer = senders[0]._metric._optimizer
    optimizer.state[blocks.parameters[0]]["exp_avg_sq"] = torch.linspace(1, 9, 2000)  # another state, as when resuming
    assert torch.equal(codewords(code, blocks, senders[:1], 7), before)
    receiver.forget()
    assert not torch.allclose(codewords(code, blocks, senders[:1], 7), before)
