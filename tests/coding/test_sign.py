"""Signs: one bit a value, whatever packs and reads them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import kernels_numba, wire_sign
from lwpd_lightning.coding.wire import CHUNK, format_class, wire_format

SIGN = wire_format("sign")
QUICK = settings(deadline=None, max_examples=60)


def values_of(size, seed, spread):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=random) * torch.rand(size, generator=random) ** spread


@pytest.mark.usefixtures("host")
@QUICK
@given(size=st.integers(1, 3 * CHUNK), seed=st.integers(0, 2**32), spread=st.integers(0, 8), unbiased=st.booleans())
def test_it_is_the_rule(size, seed, spread, unbiased):
    values = values_of(size, seed, spread)
    wire = format_class("sign").unbiased(torch.device("cpu"), seed=0) if unbiased else SIGN
    packed = wire.pack(values)
    assert packed.shape == (4 * -(-size // CHUNK) + 128 * (size // CHUNK) + -(-(size % CHUNK) // 8),)
    for chunk, got in zip(values.double().split(CHUNK), SIGN.unpack(packed, size).double().split(CHUNK), strict=True):
        level = chunk.square().sum() / chunk.abs().sum() if unbiased else chunk.abs().mean()
        torch.testing.assert_close(got, torch.where(chunk >= 0, level, -level), rtol=1e-5, atol=1e-30)


@pytest.mark.usefixtures("host")
def test_zeros_equal_magnitudes_huge_values_and_what_is_not_finite():
    for values in (torch.zeros(3000), torch.full((7,), 0.1), torch.full((3000,), -3e38), torch.tensor([1e-3, -1e-3])):
        torch.testing.assert_close(SIGN.unpack(SIGN.pack(values), len(values)), values)
    for bad in (math.nan, math.inf, -math.inf):
        values = torch.ones(3 * CHUNK)
        values[CHUNK + 5] = bad
        packed = SIGN.pack(values)
        arrived = SIGN.unpack(packed, len(values))
        assert not SIGN.finite(packed, len(values))
        assert arrived[CHUNK : 2 * CHUNK].isnan().all()
        assert torch.equal(arrived[:CHUNK], values[:CHUNK])


@QUICK
@given(
    m=st.integers(1, 9), length=st.integers(1, 2 * CHUNK), seed=st.integers(0, 2**32), offset=st.integers(0, 7),
    scale=st.floats(-4, 4, width=32), unbiased=st.booleans(),
)  # fmt: skip
def test_compiled_and_torch_pack_alike_and_read_the_same_bits(m, length, seed, offset, scale, unbiased):
    rows = values_of(m * length, seed, 2).view(m, length)
    levels, packed = wire_sign.quantise(rows, unbiased)
    payload = torch.empty(4 * m + packed.numel(), dtype=torch.uint8)
    kernels_numba.pack_signs(rows.flatten().numpy(), length, payload.numpy(), unbiased)
    torch.testing.assert_close(payload[: 4 * m].view(torch.float32), levels, rtol=1e-5, atol=1e-30)
    assert torch.equal(payload[4 * m :], packed.flatten())

    message = torch.cat([torch.zeros(offset, dtype=torch.uint8), levels.view(torch.uint8), packed.flatten()])
    outs = torch.full((2, m, length), math.nan)
    wire_sign.dequantise(levels, packed, outs[0])
    kernels_numba.unpack_signs(message[offset:].numpy(), length, outs[1].view(-1).numpy())
    assert torch.equal(outs[0].view(torch.int32), outs[1].view(torch.int32))
    start = torch.randn(m * length, generator=torch.Generator().manual_seed(seed))
    added = start.clone()
    kernels_numba.add_signs(message[offset:].numpy(), length, added.numpy(), scale)
    torch.testing.assert_close(added, start + scale * outs[0].flatten(), rtol=1e-6, atol=1e-6)
