"""What a codeword goes through on a device is what it goes through on the host, in float64, by the definition."""

import pytest
import torch
from torch.nn import Parameter

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.families import local_code, lwpd_code
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import CHUNK, format_class, wire_format
from tests.devices import on_each_device

pytestmark = pytest.mark.usefixtures("host")
SHAPES = [(60, 50), (7,), (3, 4, 2), ()]
WIRES = ["float64", "float32", "bfloat16", "int8", "sign", "ternary"]
# The most that a value of ordinary size loses; what loses most of it is held to the sum of squares.
LOSES = {"float64": 0.0, "float32": 0.0, "bfloat16": 2.0**-8, "int8": 0.5 / 127, "sign": None, "ternary": None}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
wires = pytest.mark.parametrize("name", WIRES)


def on(device, dtype, blocks=3):
    """Parameters with gradients on a device, and the same numbers on the host in float64."""
    random = torch.Generator().manual_seed(1)
    parameters, exact = [], []
    for shape in SHAPES:
        gradient = torch.randn(shape, generator=random).to(dtype)
        for into, kind in ((parameters, (device, dtype)), (exact, ("cpu", torch.float64))):
            into.append(Parameter(torch.zeros(shape).to(*kind)))
            into[-1].grad = gradient.to(*kind)
    return BlockMap(parameters, blocks), BlockMap(exact, blocks)


def close(there, here):
    torch.testing.assert_close(there.cpu().double(), here.double(), rtol=1e-5, atol=1e-5)


@on_each_device
@dtypes
@pytest.mark.parametrize("coefficients", [[0.5, -1.0, 0.25], [0.0, 2.0, 0.0]])
def test_encode(device, dtype, coefficients):
    blocks, exact = on(device, dtype)
    codeword, reference = blocks.codeword(), exact.codeword()
    for _ in range(2):
        blocks.encode(torch.tensor(coefficients, dtype=torch.float64), codeword)
        exact.encode(coefficients, reference)
    assert (codeword.device.type, codeword.dtype) == (device, blocks.dtype)
    close(codeword, reference)


@on_each_device
@dtypes
def test_gradients_along_rows(device, dtype):
    blocks, exact = on(device, dtype)
    rows = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    into = torch.zeros(2, blocks.block_size, device=device, dtype=blocks.dtype)
    blocks.add_along(rows.to(into), into)
    close(into, rows @ exact.gather())


@on_each_device
@dtypes
@pytest.mark.parametrize("direction", [None, [0.5, -1.0, 0.25]])
def test_scatter(device, dtype, direction):
    blocks, _ = on(device, dtype)
    decoded = torch.randn(3 if direction is None else 1, blocks.block_size, generator=torch.Generator().manual_seed(3))
    blocks.scatter(decoded.to(device, blocks.dtype), None, direction)
    for p in blocks.parameters:
        assert (p.grad.device, p.grad.dtype, p.grad.shape) == (p.device, p.dtype, p.shape)
    whole = decoded if direction is None else torch.outer(torch.tensor(direction), decoded[0])
    reference = on("cpu", torch.float32)[0]
    reference.scatter(whole, None)
    torch.testing.assert_close(
        blocks.gather().cpu().float(), reference.gather(), rtol=2.0**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )


@on_each_device
def test_a_gradient_of_one_block_is_scattered_as_views(device):
    blocks, _ = on(device, torch.float32, blocks=1)
    decoded = torch.randn(1, blocks.block_size, device=device)
    blocks.scatter(decoded, None, views=True)
    assert {p.grad.untyped_storage().data_ptr() for p in blocks.parameters} == {decoded.untyped_storage().data_ptr()}
    assert torch.equal(blocks.gather(), decoded)


@on_each_device
@wires
@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 5])
def test_pack_and_unpack(device, name, size):
    wire = wire_format(name)
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).clamp(-3, 3)
    packed = wire.pack(values.to(device))
    assert (packed.device.type, packed.dtype, packed.shape) == (device, torch.uint8, (wire.nbytes(size),))
    arrived = wire.unpack(packed, size)
    assert arrived.device.type == device
    if LOSES[name] is None:
        for chunk, got in zip(values.split(CHUNK), arrived.cpu().split(CHUNK), strict=True):
            energy = float(chunk.square().sum())
            assert float((chunk - got).square().sum()) <= (1 - 1 / len(chunk)) * energy * (1 + 1e-5)
            assert len(got.abs().unique()) <= 2
    else:
        assert (arrived.cpu().double() - values.double()).abs().max() <= 3 * LOSES[name] * (1 + 1e-4)
    assert wire.finite(packed.cpu(), size)


@on_each_device
@wires
def test_what_a_device_has_packed_is_read_wherever_it_is(device, name):
    """Packed on the device, staged to the host: read, cut and added there, and taken off the memory on the device."""
    wire, size = wire_format(name), 2 * CHUNK + 100
    values = torch.randn(size, generator=torch.Generator().manual_seed(4))
    packed = wire.pack(values.to(device)).cpu()
    arrived = wire.unpack(packed, size).float()
    for out in (torch.ones(size, device=device), torch.ones(size)):
        wire.add_to(packed, out, -2.0)
        close(out, 1 - 2 * arrived)
        wire.unpack_into(packed, out)
        close(out, arrived)
    cut = wire.cut(packed, size, CHUNK, size)
    assert torch.equal(wire.unpack(cut, size - CHUNK).float(), arrived[CHUNK:])


@on_each_device
@wires
def test_what_is_not_finite_on_a_device_is_known_on_the_host(device, name):
    values = torch.ones(3 * CHUNK, device=device)
    values[CHUNK + 5] = float("inf")
    wire = wire_format(name)
    packed = wire.pack(values).cpu()
    assert not wire.finite(packed, len(values))
    arrived = wire.unpack(packed, len(values)).float()
    assert not arrived[CHUNK + 5].isfinite()
    close(arrived[:CHUNK], torch.ones(CHUNK))


@on_each_device
def test_stochastic_rounding_draws_on_the_device_and_is_unbiased(device):
    values = torch.randn(500, generator=torch.Generator().manual_seed(5)).to(device)

    def draws(count):
        wire = format_class("int8").unbiased(torch.device(device), seed=6)
        return torch.stack([wire.unpack(wire.pack(values), 500) for _ in range(count)])

    many = draws(2000)
    step = float(values.abs().max()) / 127
    assert float((many.mean(dim=0) - values).abs().max()) < 5 * step / 2 / 2000**0.5
    assert torch.equal(draws(2), many[:2])


@on_each_device
@pytest.mark.parametrize("code", [local_code(3, data_parts=3, blocks=3), lwpd_code(4, 4, 2)], ids=repr)
@pytest.mark.parametrize("factor", [1.0, 2.0**-16])
def test_the_memory_of_error_feedback(device, code, factor):
    """What arrived and what is left is what was meant, by the host's own sums."""
    wire = wire_format("int8")
    blocks, exact = on(device, torch.float32, code.blocks)
    feedback, meant = ErrorFeedback(code, 1, blocks), ErrorFeedback(code, 1, exact)
    arrived = torch.zeros(len(meant.memory), exact.block_size, dtype=torch.float64)
    part = code.parts(1)[0]
    for version in range(6):
        for p in blocks.parameters:
            p.grad.div_(factor)  # as of a loss that was scaled
        feedback.add(part, factor)
        for p in blocks.parameters:
            p.grad.mul_(factor)
        meant.add(part)
        feedback.begin(version)
        packed = wire.pack(feedback.codeword()).cpu()
        whole = feedback.settle(wire, packed, slice(0, 10))
        got = wire.unpack(packed, exact.block_size).double()
        got[:10] = whole.cpu()
        row = code.at(version).direction
        accumulate(arrived, [1.0] if len(arrived) == 1 else row, got)
    close(feedback.memory, meant.memory - arrived)
    feedback.give_back(3, 6, torch.ones(3))
    assert feedback.codeword()[3:6].isfinite().all()


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulate(device, dtype):
    codeword = torch.randn(40, generator=torch.Generator().manual_seed(7)).to(dtype)
    into = torch.zeros(3, 40, device=device)
    accumulate(into, [1.0, 0.5, -2.0], codeword.to(device))
    close(into, torch.outer(torch.tensor([1.0, 0.5, -2.0]), codeword.float()))
