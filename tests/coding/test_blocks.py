"""BlockMap against a plain dense reference: an explicit generator and a matrix of all task gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.families import local_code, lwpd_code, uncoded
from tests.coding.units import both
from tests.devices import on_each_device

SHAPES = [(), (1,), (3,), (8,), (5, 2), (4, 6), (2, 3, 4, 4), (0, 3), (61, 57)]
pytestmark = pytest.mark.usefixtures("host")


@st.composite
def models(draw, dtypes=(torch.float32, torch.float64, torch.bfloat16)):
    """A list of parameters with random gradients: tied, frozen and without a gradient, of several layouts."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    parameters = []
    for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5)):
        p = Parameter(torch.randn(shape, generator=random).to(draw(st.sampled_from(dtypes))))
        kind = draw(st.sampled_from(["plain", "plain", "frozen", "no grad", "strided"]))
        if len(shape) == 4 and kind == "strided":
            p.data = p.data.to(memory_format=torch.channels_last)
        p.requires_grad_(kind != "frozen")
        if kind in ("plain", "strided"):
            p.grad = torch.randn(shape, generator=random).to(p.dtype)
        if kind == "strided" and len(shape) == 4:
            p.grad = p.grad.to(memory_format=torch.channels_last)
        elif kind == "strided" and len(shape) == 2:
            p.grad = p.grad.T.contiguous().T
        parameters.append(p)
    parameters.append(Parameter(torch.randn(6, generator=random)))  # one that is always trainable
    if draw(st.booleans()):
        parameters.append(parameters[0])
    return parameters


def dense(parameters, blocks, grads=None):
    """The current gradients as an explicit (blocks, d) float64 matrix, straight from the definition."""
    unique = []
    for p in parameters:
        if p.requires_grad and not any(p is other for other in unique):
            unique.append(p)
    columns = []
    for i, p in enumerate(unique):
        grad = p.grad if grads is None else grads[i]
        values = [0.0] * p.numel() if grad is None else grad.double().flatten().tolist()
        size = -(-p.numel() // blocks)
        values += [0.0] * (size * blocks - len(values))
        columns.append(torch.tensor(values, dtype=torch.float64).view(blocks, size))
    return torch.cat(columns, dim=1)


@settings(deadline=None, max_examples=60)
@given(models(), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_encode_in_a_unit_against_the_dense_reference_compiled_or_not(parameters, blocks, fresh, seed):
    block_map, random = BlockMap(parameters, blocks), torch.Generator().manual_seed(seed)
    held = torch.randn(block_map.block_size, generator=random).to(block_map.dtype)
    units = both(block_map, random)
    coefficients = torch.randn(blocks, generator=random) * (torch.rand(blocks, generator=random) > 0.3)
    expected = coefficients.double() @ (dense(parameters, blocks) / units[0].roots().double())
    got = []
    for unit in units:
        got.append(held.clone())
        block_map.encode(coefficients, got[-1], unit, fresh=fresh)
    torch.testing.assert_close(got[0].double(), expected + (0 if fresh else held.double()), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[0], got[-1])
    assert torch.equal(units[0].roots(), units[-1].roots())


@settings(deadline=None, max_examples=100)
@given(models(), st.integers(1, 7), st.data())
def test_encode_and_gather_against_the_dense_reference(parameters, blocks, data):
    block_map = BlockMap(parameters, blocks)
    reference = dense(parameters, blocks)
    assert block_map.zeros().shape == reference.shape == (blocks, block_map.block_size)
    torch.testing.assert_close(block_map.gather(), reference.to(block_map.dtype), rtol=0, atol=0)

    coefficients = data.draw(st.lists(st.sampled_from([0.0, 0.5, -1.0, 0.3]), min_size=blocks, max_size=blocks))
    before = torch.randn(block_map.block_size, dtype=block_map.dtype)
    expected = torch.tensor(coefficients, dtype=torch.float64) @ reference
    for fresh, held in ((False, before.double()), (True, 0)):
        codeword = before.clone()
        block_map.encode(coefficients, codeword, fresh=fresh)
        torch.testing.assert_close(codeword, (held + expected).to(block_map.dtype))


@settings(deadline=None, max_examples=100)
@given(models(), st.integers(1, 7), st.integers(1, 4))
def test_the_gradients_along_several_rows_against_the_dense_reference(parameters, blocks, count):
    block_map = BlockMap(parameters, blocks)
    rows = torch.randn(count, blocks, dtype=block_map.dtype)
    into = torch.randn(count, block_map.block_size, dtype=block_map.dtype)
    expected = into.double() + rows.double() @ dense(parameters, blocks)
    block_map.add_along(rows, into)
    torch.testing.assert_close(into, expected.to(block_map.dtype))


@settings(deadline=None, max_examples=100)
@given(models(), st.integers(1, 7), st.booleans())
def test_scatter_undoes_gather_and_leaves_untouched_gradients_none(parameters, blocks, forget):
    block_map = BlockMap(parameters, blocks)
    touched = block_map.touched()
    before = [None if p.grad is None else p.grad.clone() for p in block_map.parameters]
    assert touched == [grad is not None for grad in before]
    flat = block_map.gather()
    buffers = {i: p.grad.data_ptr() for i, p in enumerate(block_map.parameters) if p.grad is not None}
    if forget:
        buffers = {}
        for p in block_map.parameters:
            p.grad = None
    block_map.scatter(2 * flat, touched)
    for i, (p, grad) in enumerate(zip(block_map.parameters, before, strict=True)):
        if grad is None:
            assert p.grad is None
            continue
        assert (p.grad.dtype, p.grad.shape) == (p.dtype, p.shape)
        torch.testing.assert_close(p.grad, 2 * grad, rtol=0, atol=0)
        assert p.grad.data_ptr() == buffers.get(i, p.grad.data_ptr())
    block_map.scatter(flat, None)
    assert block_map.touched() == [True] * len(block_map.parameters)


@settings(deadline=None, max_examples=100)
@given(models(), st.integers(1, 3))
def test_scattered_views_are_what_is_scattered(parameters, blocks):
    block_map = BlockMap(parameters, blocks)
    decoded = torch.randn(blocks, block_map.block_size, dtype=block_map.dtype)
    block_map.scatter(decoded, None)
    copies = [p.grad.clone() for p in block_map.parameters]
    block_map.scatter(decoded, None, views=True)
    for p, copy in zip(block_map.parameters, copies, strict=True):
        assert (p.grad.dtype, p.grad.shape) == (p.dtype, p.shape)
        assert torch.equal(p.grad, copy)
        as_it_stands = blocks == 1 and p.is_contiguous() and p.dtype == decoded.dtype
        shared = p.grad.untyped_storage().data_ptr() == decoded.untyped_storage().data_ptr()
        assert shared == as_it_stands or not p.numel()


@settings(deadline=None, max_examples=100)
@given(models(), st.integers(1, 7), st.booleans(), st.data())
def test_scatter_along_a_direction_against_the_dense_reference(parameters, blocks, forget, data):
    block_map = BlockMap(parameters, blocks)
    number = st.sampled_from([0.0, 0.5, -1.0, 0.3])
    direction = data.draw(st.lists(number, min_size=blocks, max_size=blocks))
    touched = data.draw(st.lists(st.booleans(), min_size=len(block_map.parameters), max_size=len(block_map.parameters)))
    row = torch.randn(1, block_map.block_size, dtype=block_map.dtype)
    if forget:
        for p in block_map.parameters:
            p.grad = None
    block_map.scatter(row, touched, direction)
    assert block_map.touched() == touched
    reference = torch.tensor(direction, dtype=block_map.dtype)[:, None] * row
    start = 0
    for p in block_map.parameters:
        size = -(-p.numel() // blocks)
        expected = reference[:, start : start + size].flatten()[: p.numel()].view(p.shape)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.to(p.dtype), rtol=0, atol=0)
        start += size
    assert start == block_map.block_size


@on_each_device
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_accumulate_adds_the_outer_product(device, rows, dtype):
    into = torch.randn(rows, 19, device=device)
    codeword = torch.randn(19, device=device).to(dtype)
    coefficients = torch.linspace(-1, 1, rows, dtype=torch.float64)
    expected = into + torch.outer(coefficients.to(device), codeword.double()).float()
    accumulate(into, coefficients, codeword)
    torch.testing.assert_close(into, expected)


def test_accumulate_adds_to_some_positions_in_place():
    flat = torch.zeros(2, 6)
    accumulate(flat[:, 2:5], [1.0, 2.0], torch.ones(3))
    assert flat.tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 2, 2, 2, 0]]


@on_each_device
@pytest.mark.parametrize("code", [lwpd_code(8, 4, 2), lwpd_code(16, 8, 4), local_code(6, 2, 2), uncoded(3)], ids=repr)
def test_the_whole_round_is_the_mean_gradient_over_the_batch(code, device):
    """Each worker's backward passes, encode, accumulate and scatter, against autograd on the whole batch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    ).to(device, torch.float64, memory_format=torch.channels_last)
    batch = torch.randn(4 * code.data_parts, 1, 4, 4, dtype=torch.float64, device=device)
    block_map = BlockMap(model.parameters(), code.blocks)

    tasks = []
    for part in batch.chunk(code.data_parts):
        model.zero_grad()
        model(part).square().mean().backward()
        tasks.append(dense(list(model.parameters()), code.blocks))
    reference = torch.cat(tasks)  # (k, d): row a * B + b

    flat = block_map.zeros()
    for worker in range(code.n):
        codeword = block_map.codeword()
        for a in code.parts(worker):
            model.zero_grad()
            model(batch.chunk(code.data_parts)[a]).square().mean().backward()
            block_map.encode(code.coefficients(worker)[a], codeword)
        torch.testing.assert_close(codeword.cpu(), code.generator[worker] @ reference)
        accumulate(flat, code.coefficients(worker).mean(dim=0) * code.k / code.n, codeword)

    model.zero_grad()
    block_map.scatter(flat, None)
    decoded = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(batch).square().mean().backward()
    for p, grad in zip(model.parameters(), decoded, strict=True):
        torch.testing.assert_close(grad, p.grad)


def test_output_nodes_are_blocks():
    layer = torch.nn.Linear(3, 4, bias=False)
    layer.weight.grad = torch.arange(12.0).view(4, 3)
    flat = BlockMap(layer.parameters(), 2).gather()
    assert flat.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_block_that_is_not_wanted_is_not_read():
    p = Parameter(torch.zeros(4))
    p.grad = torch.tensor([1.0, 2.0, float("nan"), float("nan")])
    block_map = BlockMap([p], 2)
    codeword = block_map.codeword()
    block_map.encode([3.0, 0.0], codeword)
    assert codeword.tolist() == [3, 6]


@pytest.mark.parametrize("coefficients", [[0.5, 0.5], [0.5, 0.0]])
def test_encode_takes_no_memory_of_the_models_size(coefficients):
    parameters = [Parameter(torch.zeros(512, 512)), Parameter(torch.zeros(999)), Parameter(torch.zeros(64, 33))]
    for p in parameters:
        p.grad = torch.ones_like(p)
    block_map = BlockMap(parameters, 2)
    codeword = block_map.codeword()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        block_map.encode(coefficients, codeword)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in record.events())
    assert allocated < 4 * block_map.numel / 100


def test_tied_and_frozen_parameters():
    tied, frozen = Parameter(torch.zeros(4)), Parameter(torch.zeros(9), requires_grad=False)
    block_map = BlockMap([tied, frozen, Parameter(torch.zeros(3)), tied], 2)
    assert (len(block_map.parameters), block_map.numel, block_map.block_size) == (2, 7, 4)
    assert block_map.parameters[0] is tied


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_the_buffers_dtype(dtypes, expected):
    block_map = BlockMap([Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes], 2)
    assert block_map.dtype == block_map.zeros().dtype == block_map.codeword().dtype == expected


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda b: BlockMap([], 2), "no entry with requires_grad=True"),
        (lambda b: BlockMap([Parameter(torch.zeros(2), requires_grad=False)], 2), "no entry with requires_grad=True"),
        (lambda b: BlockMap(b.parameters, 0), "blocks=0: use at least 1."),
        (lambda b: BlockMap([Parameter(torch.zeros(2, dtype=torch.complex64))], 1), "complex"),
        (lambda b: BlockMap([*b.parameters, Parameter(torch.zeros(2, device="meta"))], 1), r"\['cpu', 'meta'\]"),
        (lambda b: b.encode([1.0], b.codeword()), "coefficients has 1 entries: give one for each of 2 blocks."),
        (lambda b: b.encode([1.0, 1.0], torch.zeros(4)), r"shape \(4,\)"),
        (lambda b: accumulate(b.zeros(), [1.0, 1.0], torch.zeros(1, 2)), r"shape \(1, 2\)"),
        (lambda b: accumulate(b.zeros(), [1.0], b.codeword()), "1 coefficients .* needs 2"),
        (lambda b: b.scatter(torch.zeros(2, 2), None), r"shape \(2, 2\)"),
        (lambda b: b.scatter(b.zeros(), None, [1.0, 1.0]), r"shape \(2, 3\): this block map needs \(1, 3\)"),
        (lambda b: b.scatter(torch.zeros(1, 3), None), r"shape \(1, 3\): this block map needs \(2, 3\)"),
        (lambda b: b.scatter(torch.zeros(1, 3), None, [1.0]), "coefficients has 1 entries: give one for each of 2"),
        (lambda b: b.scatter(b.zeros(), [True, True]), "touched has 2 entries"),
    ],
)
def test_bad_input_is_named(call, needle):
    block_map = BlockMap([Parameter(torch.zeros(6))], 2)
    with pytest.raises(ValueError, match=needle):
        call(block_map)


def test_a_sparse_gradient_is_refused():
    layer = torch.nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    block_map = BlockMap(layer.parameters(), 2)
    with pytest.raises(ValueError, match="sparse"):
        block_map.encode([1.0, 1.0], block_map.codeword())
