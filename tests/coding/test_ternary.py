"""Ternary: three values a chunk, five in a byte, and never more lost than sending the largest value alone would."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import kernels_numba, ternary
from lwpd_lightning.coding.ternary import dequantise, quantise
from lwpd_lightning.coding.wire import CHUNK, format_class, wire_format

TERNARY = wire_format("ternary")
pytestmark = pytest.mark.usefixtures("host")


def values_of(size, seed, spread):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=random) * torch.rand(size, generator=random) ** spread


def reference(values):
    """One chunk by the rule in the docstring, value by value, in float64."""
    numbers = values.double().tolist()
    mean = sum(map(abs, numbers)) / len(numbers)
    reach = [abs(x) for x in numbers if abs(x) >= mean * (1 - 1e-5)]
    level = sum(reach) / max(1, len(reach))
    return torch.tensor([math.copysign(level, x) if abs(x) >= mean * (1 - 1e-5) else 0.0 for x in numbers])


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3 * CHUNK), seed=st.integers(0, 2**32), spread=st.integers(0, 8))
def test_it_is_the_rule_and_loses_no_more_than_the_bound(size, seed, spread):
    values = values_of(size, seed, spread)
    packed = TERNARY.pack(values)
    assert packed.shape == (TERNARY.nbytes(size),)
    arrived = TERNARY.unpack(packed, size)
    for chunk, got in zip(values.split(CHUNK), arrived.split(CHUNK), strict=True):
        torch.testing.assert_close(got, reference(chunk).float(), rtol=1e-5, atol=1e-30)
        energy = float(chunk.double().square().sum())
        lost = float((chunk - got).double().square().sum())
        assert lost <= (1 - 1 / len(chunk)) * energy * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "int8", "sign", "ternary"])
@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 4 * CHUNK), data=st.data())
def test_a_cut_of_a_packed_codeword_is_the_packed_cut(name, size, data):
    wire, values = wire_format(name), values_of(size, size, 2)
    start = CHUNK * data.draw(st.integers(0, (size - 1) // CHUNK))
    ends = [*range(start + CHUNK, size, CHUNK), size]
    stop = data.draw(st.sampled_from(ends))
    assert torch.equal(wire.cut(wire.pack(values), size, start, stop), wire.pack(values[start:stop]))


def test_zeros_equal_magnitudes_and_huge_values():
    for values in (torch.zeros(3000), torch.full((7,), 0.1), torch.full((3000,), -3e38), torch.tensor([1e-3, -1e-3])):
        torch.testing.assert_close(TERNARY.unpack(TERNARY.pack(values), len(values)), values)


@settings(deadline=None, max_examples=100)
@given(
    size=st.sampled_from([1, 2, 3, 17, CHUNK]), exponent=st.floats(-149, -100), ratio=st.floats(-12, 0),
    largest=st.integers(1, CHUNK), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_what_is_next_to_the_smallest_numbers_arrives_within_the_bound_or_as_zeros(
    size, exponent, ratio, largest, seed
):
    """Memories of parameters that get no gradients hold such values. Two magnitudes of any signs, or nearly one."""
    magnitudes = torch.full((size,), 2.0 ** (exponent + ratio), dtype=torch.float64)
    magnitudes[:largest] = 2.0**exponent
    random = torch.Generator().manual_seed(seed)
    values = (magnitudes * torch.randint(0, 2, (size,), generator=random).mul(2).sub(1)).float()
    packed = TERNARY.pack(values)
    on_device, digits = ternary._quantise_on_device(values[None])
    received = torch.empty(1, size)
    dequantise(on_device, ternary._bytes(digits), received)
    energy = float(values.double().square().sum())
    # On the host sums are taken at 2^-11 of what is summed, in steps of 2^-149.
    for level, arrived, rounding in (
        (packed[:4].clone().view(torch.float32), TERNARY.unpack(packed, size), 2.0**-138),
        (on_device, received[0], 0.0),
    ):
        assert level.isfinite().all()
        assert 0 <= level <= 2.0**exponent * (1 + 1e-6 * size) + size * rounding
        assert arrived.isfinite().all()
        lost = float((values.double() - arrived.double()).square().sum())
        assert not arrived.any() or lost <= (1 - 1 / size) * energy * (1 + 1e-5) + size * rounding**2


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3 * CHUNK), seed=st.integers(0, 2**32), spread=st.integers(0, 8))
def test_the_unbiased_level_is_on_the_same_digits_and_has_the_values_energy(size, seed, spread):
    values = values_of(size, seed, spread)
    plain = TERNARY.unpack(TERNARY.pack(values), size)
    unbiased = format_class("ternary").unbiased(torch.device("cpu"), seed=0)
    arrived = TERNARY.unpack(unbiased.pack(values), size)
    assert torch.equal(arrived.sign(), plain.sign())
    for chunk, got in zip(values.double().split(CHUNK), arrived.double().split(CHUNK), strict=True):
        torch.testing.assert_close(got @ chunk, chunk @ chunk, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-22, 1e20, 1e37])
@pytest.mark.parametrize("name", ["ternary", "sign"])
def test_squares_are_neither_lost_nor_infinite(name, scale):
    unbiased = format_class(name).unbiased(torch.device("cpu"), seed=0)
    values = torch.randn(CHUNK, generator=torch.Generator().manual_seed(1))
    ones, scaled = (unbiased.unpack(unbiased.pack(of), CHUNK) for of in (values, values * scale))
    torch.testing.assert_close(scaled / scale, ones, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_chunk_alone(bad):
    values = torch.ones(3 * CHUNK)
    values[CHUNK + 5] = bad
    arrived = TERNARY.unpack(TERNARY.pack(values), len(values))
    assert arrived[CHUNK : 2 * CHUNK].isnan().all()
    assert torch.equal(arrived[:CHUNK], values[:CHUNK])
    assert torch.equal(arrived[2 * CHUNK :], values[2 * CHUNK :])


def test_bytes_that_nobody_writes_are_read_as_something_finite():
    packed = TERNARY.pack(torch.randn(CHUNK, generator=torch.Generator().manual_seed(0)))
    packed[4:] = torch.arange(len(packed) - 4) % 256
    assert TERNARY.unpack(packed, CHUNK).isfinite().all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_host_and_device_arithmetic_agree(unbiased):
    rows = values_of(20 * 100, 3, 2).view(20, 100)
    levels, packed = quantise(rows, unbiased)
    on_device, digits = ternary._quantise_on_device(rows, unbiased)
    torch.testing.assert_close(on_device, levels)
    assert torch.equal(ternary._bytes(digits), packed)
    out = torch.empty(20, 100)
    dequantise(levels, packed, out)
    assert set((out / levels[:, None]).round().unique().tolist()) <= {-1.0, 0.0, 1.0}


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 9), length=st.integers(1, 2 * CHUNK), seed=st.integers(0, 2**32), spread=st.integers(0, 8),
    unbiased=st.booleans(),
)  # fmt: skip
def test_compiled_and_numpy_agree(m, length, seed, spread, unbiased):
    rows = values_of(m * length, seed, spread).view(m, length)
    means = rows.abs().double().mean(1, keepdim=True)
    # Where a value lies at the threshold, to rounding, either may be right.
    assume(not bool(((rows.abs() / means - 1).abs() < 2e-5).any()))
    levels, packed = quantise(rows, unbiased)
    payload = torch.empty(4 * m + packed.numel(), dtype=torch.uint8)
    kernels_numba.pack(rows.flatten().numpy(), length, payload.numpy(), unbiased)
    torch.testing.assert_close(payload[: 4 * m].view(torch.float32), levels, rtol=1e-5, atol=1e-30)
    assert torch.equal(payload[4 * m :], packed.flatten())


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 9), length=st.integers(1, 2 * CHUNK), seed=st.integers(0, 2**32), offset=st.integers(0, 7),
    scale=st.floats(-4, 4, width=32),
)  # fmt: skip
def test_compiled_and_numpy_read_the_same_bits(m, length, seed, offset, scale):
    """Also from bytes that nobody writes, and behind any header: ranks with and without numba must step alike."""
    random = torch.Generator().manual_seed(seed)
    levels = torch.rand(m, generator=random)
    packed = torch.randint(0, 256, (m, -(-length // 5)), generator=random).byte()
    message = torch.cat([torch.zeros(offset, dtype=torch.uint8), levels.view(torch.uint8), packed.flatten()])
    outs = torch.full((2, m, length), math.nan)
    dequantise(levels, packed, outs[0])
    kernels_numba.unpack(message[offset:].numpy(), length, outs[1].view(-1).numpy())
    assert torch.equal(outs[0].view(torch.int32), outs[1].view(torch.int32))
    start = torch.randn(m * length, generator=random)
    added = start.clone()
    kernels_numba.add(message[offset:].numpy(), length, added.numpy(), scale)
    torch.testing.assert_close(added, start + scale * outs[0].flatten(), rtol=1e-6, atol=1e-6)
