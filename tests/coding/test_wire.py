import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding.wire import format_class, formats, wire_format
from tests.devices import on_cuda

NAMES = ["float64", "float32", "bfloat16", "int8"]
QUICK = settings(deadline=None, max_examples=40)
finite = st.floats(-(2.0**100), 2.0**100, width=32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unbiased():
    return format_class("int8").unbiased(torch.device("cpu"), seed=0)


def test_formats_are_known_by_their_names_and_say_what_they_lose():
    assert [wire_format(name).name for name in NAMES] == NAMES
    assert {made.name: (made.lossy, made.needs_feedback) for made in formats()} == {
        "float64": (False, False), "float32": (False, False), "bfloat16": (True, False), "int8": (True, False),
        "sign": (True, True), "ternary": (True, True),
    }  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "ternary"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_travels_as_it_is_is_a_view(name, dtype):
    codeword = torch.randn(100, generator=seeded()).to(dtype)
    assert (wire_format(name).pack(codeword).data_ptr() == codeword.data_ptr()) == wire_format(name).carries(dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_pack_gives_nbytes_contiguous_bytes_and_unpack_the_size(name, dtype, size):
    wire = wire_format(name)
    payload = wire.pack(torch.randn(size, generator=seeded()).to(dtype))
    assert (payload.dtype, payload.device.type, payload.shape) == (torch.uint8, "cpu", (wire.nbytes(size),))
    assert payload.is_contiguous()
    assert wire.unpack(payload, size).shape == (size,)


def test_sizes_on_the_wire():
    assert [wire_format(name).nbytes(2048) for name in NAMES] == [16384, 8192, 4096, 2048 + 8]


@pytest.mark.parametrize(("name", "dtype"), [("float64", torch.float64), ("float32", torch.float32)])
def test_a_codeword_of_the_wire_dtype_is_not_copied_and_comes_back_bit_by_bit(name, dtype):
    wire = wire_format(name)
    codeword = torch.tensor([1.5, -0.0, math.inf, math.nan], dtype=dtype)
    payload = wire.pack(codeword)
    assert payload.data_ptr() == codeword.data_ptr()
    back = wire.unpack(payload, 4)
    assert back.data_ptr() == codeword.data_ptr()
    assert back.dtype == dtype


def test_bfloat16_is_torchs_rounding():
    codeword = torch.randn(3000, generator=seeded())
    wire = wire_format("bfloat16")
    back = wire.unpack(wire.pack(codeword), 3000)
    assert torch.equal(back, codeword.to(torch.bfloat16))


def test_a_strided_codeword_is_packed_in_order():
    codeword = torch.arange(20.0)[::2]
    for name in NAMES:
        wire = wire_format(name)
        torch.testing.assert_close(wire.unpack(wire.pack(codeword), 10).double(), codeword.double(), rtol=0, atol=0.08)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_behind_an_odd_header_is_read(name):
    wire = wire_format(name)
    payload = wire.pack(torch.tensor([1.0, -2.0, 127.0]))
    frame = torch.cat((torch.zeros(7, dtype=torch.uint8), payload))
    assert torch.equal(wire.unpack(frame[7:], 3), wire.unpack(payload, 3))


@QUICK
@given(st.lists(finite, min_size=1, max_size=40), st.integers(1, 200), st.booleans())
def test_int8_is_within_its_step_of_every_value(values, repeats, stochastic):
    codeword = torch.tensor(values * repeats, dtype=torch.float32)
    wire = unbiased() if stochastic else wire_format("int8")
    error = (wire.unpack(wire.pack(codeword), codeword.numel()) - codeword).abs()
    for chunk, wrong in zip(codeword.split(1024), error.split(1024), strict=True):
        step = float(chunk.abs().max()) / 127
        assert float(wrong.max()) <= step * (1 if stochastic else 0.5) * (1 + 1e-4) + 1e-42  # scales may be subnormal


def test_a_scale_that_rounds_down_does_not_wrap_the_largest_value():
    smallest = 2.0**-149
    codeword = torch.tensor([190 * smallest, -190 * smallest])  # absmax / 127 rounds to one smallest number
    wire = wire_format("int8")
    assert wire.unpack(wire.pack(codeword), 2).tolist() == [127 * smallest, -127 * smallest]


def test_each_chunk_has_its_own_scale_and_zeros_stay_zero():
    codeword = torch.cat((torch.zeros(1024), 1e-6 * torch.ones(1024), 1e6 * torch.ones(10)))
    for wire in (wire_format("int8"), unbiased()):
        back = wire.unpack(wire.pack(codeword), codeword.numel())
        assert not back[:1024].any()
        torch.testing.assert_close(back, codeword)


def test_stochastic_rounding_is_unbiased_and_reproducible():
    codeword = torch.randn(500, generator=seeded(1))
    wire = unbiased()
    draws = torch.stack([wire.unpack(wire.pack(codeword), 500) for _ in range(2000)])
    step = float(codeword.abs().max()) / 127
    # A draw's deviation is at most step/2 in standard deviation: 5 sigma of the mean of 2000.
    assert float((draws.mean(dim=0) - codeword).abs().max()) < 5 * step / 2 / math.sqrt(2000)
    assert draws.std(dim=0).max() > 0.4 * step
    again = unbiased()
    assert torch.equal(again.unpack(again.pack(codeword), 500), draws[0])


def test_what_a_version_is_rounded_by_depends_on_nothing_that_came_before():
    codeword, fresh, used = torch.randn(500, generator=seeded(1)), unbiased(), unbiased()
    used.pack(codeword)
    packed = []
    for wire, version in ((fresh, 7), (used, 7), (used, 8)):
        wire.begin(version)
        packed.append(wire.pack(codeword))
    assert torch.equal(packed[0], packed[1])
    assert not torch.equal(packed[1], packed[2])


def test_stochastic_rounding_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    unbiased().pack(torch.randn(10, generator=seeded()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_becomes_finite(name, value):
    codeword = torch.ones(3000)
    codeword[1500] = value
    wire = wire_format(name)
    back = wire.unpack(wire.pack(codeword), 3000)
    assert not back[1500].isfinite()
    torch.testing.assert_close(back[:1024].float(), torch.ones(1024))
    torch.testing.assert_close(back[2048:].float(), torch.ones(952))
    if name == "int8":
        assert back[1024:2048].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_of_another_length_is_refused(name):
    wire = wire_format(name)
    payload = wire.pack(torch.zeros(10))
    for size in (9, 11, -10, 1 << 40):
        with pytest.raises(ValueError, match=f"size={size}"):
            wire.unpack(payload, size)
    with pytest.raises(ValueError, match="payload is torch"):
        wire.unpack(payload.view(torch.int8), 10)


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match=r"wire format 'fp4': use 'float64', .*'int8', 'sign' or 'ternary'\."):
        wire_format("fp4")


@on_cuda
@pytest.mark.parametrize("name", NAMES)
def test_a_codeword_on_cuda_packs_to_the_same_bytes(name):
    codeword = torch.randn(3000, generator=seeded())
    wire = wire_format(name)
    assert torch.equal(wire.pack(codeword.cuda()).cpu(), wire.pack(codeword))
