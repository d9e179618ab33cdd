"""Error feedback: the sum of what arrived is the sum of what was meant, but for the memory."""

import math

import pytest
import torch
from torch.nn import Parameter

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.decoders import live_coefficients
from lwpd_lightning.coding.families import local_code, lwpd_code, uncoded
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import format_class, wire_format

SHAPES = [(6, 5), (7,), (3, 4, 2)]  # 6 and 7 are no multiples of 4: padding takes part


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def block_map(blocks, shapes=SHAPES, dtype=torch.float64):
    return BlockMap([Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes], blocks)


def set_gradients(blocks, random):
    for parameter in blocks.parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=random)
    return blocks.gather()


def pack(wire, codeword):
    """As it travels: it stays as it is while the memory does not."""
    return wire.pack(codeword).clone()


def codeword_of(feedback, version):
    feedback.begin(version)
    return feedback.codeword()


def settled(feedback, wire, codeword):
    """Settle the codeword; returns what arrives of it."""
    packed = pack(wire, codeword)
    feedback.settle(wire, packed)
    return wire.unpack(packed, len(codeword))


EXACT = wire_format("float64")


@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("wire", ["float64", "bfloat16", "int8"])
def test_a_sketch_delivers_the_sum_of_gradients_but_for_the_memory(blocks, wire):
    code, wire = local_code(3, data_parts=3, blocks=blocks), wire_format(wire)
    layout, random = block_map(blocks), seeded(1)
    feedback = ErrorFeedback(code, 1, layout)
    meant, arrived = layout.zeros(), layout.zeros()
    norms = []
    for version in range(10, 210):
        meant += set_gradients(layout, random)
        feedback.add(1)
        sent = settled(feedback, wire, codeword_of(feedback, version))
        row = code.at(version).coefficients(1)[1]
        accumulate(arrived, row, sent)  # as the decoder does: no factor B
        torch.testing.assert_close(arrived, meant - feedback.memory, rtol=1e-9, atol=1e-9)
        norms.append(float(feedback.memory.norm()))
    # A cycle shows every direction, so the memory stays at a few gradients while the sum grows.
    assert max(norms[100:]) < 2 * max(norms[:100])
    assert feedback.memory.norm() < meant.norm() / 2


@pytest.mark.parametrize("live", [(0, 1, 2), (0, 2)])
def test_the_decoded_sum_is_the_sum_of_mean_gradients_but_for_the_mean_memory(live):
    """n workers, int8 and the rule's own weights; with a worker dead, the mean over those that live."""
    code, wire, layout, random = local_code(3, data_parts=3, blocks=4), wire_format("int8"), block_map(4), seeded(4)
    feedback = {worker: ErrorFeedback(code, worker, layout) for worker in live}
    meant, decoded = layout.zeros(), layout.zeros()
    for version in range(30):
        weights = live_coefficients(code.at(version), live, feedback=True)
        for worker in live:
            meant += set_gradients(layout, random) / len(live)
            feedback[worker].add(worker)
            sent = settled(feedback[worker], wire, codeword_of(feedback[worker], version))
            accumulate(decoded, weights[worker], sent)
    memory = torch.stack([of.memory for of in feedback.values()]).mean(dim=0)
    torch.testing.assert_close(decoded, meant - memory, rtol=1e-9, atol=1e-9)
    assert memory.abs().max() > 0.1


def test_a_sketch_without_wire_loss_is_the_dense_recursion():
    code, layout, random = local_code(2, data_parts=2, blocks=4), block_map(4), seeded(2)
    feedback, residual = ErrorFeedback(code, 0, layout), layout.zeros()
    for version in range(12):
        residual = residual + set_gradients(layout, random)
        h = code.at(version).generator[0, :4]
        expected = h @ residual
        residual = residual - torch.outer(h, expected)
        feedback.add(0)
        codeword = codeword_of(feedback, version)
        torch.testing.assert_close(codeword, expected)
        settled(feedback, EXACT, codeword)
        torch.testing.assert_close(feedback.memory, residual)
        # What was sent is gone from the direction in which it was sent.
        torch.testing.assert_close(h @ feedback.memory, torch.zeros(layout.block_size, dtype=torch.float64))


@pytest.mark.parametrize("code", [lwpd_code(8, 4, 2), uncoded(3)], ids=repr)
@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_a_fixed_row_sends_the_codeword_and_what_rounding_left_of_the_last(code, wire):
    worker, wire = code.n - 1, wire_format(wire)
    layout, random = block_map(code.blocks), seeded(3)
    feedback, residual = ErrorFeedback(code, worker, layout), layout.codeword()
    for version in range(5):
        for part in code.parts(worker):
            set_gradients(layout, random)
            layout.encode(code.coefficients(worker)[part], residual)
            feedback.add(part)
        codeword = codeword_of(feedback, version)
        torch.testing.assert_close(codeword, residual)
        residual = codeword - wire.unpack(pack(wire, codeword), layout.block_size)
        assert residual.abs().max() > 0
        settled(feedback, wire, codeword)
        torch.testing.assert_close(feedback.memory, residual[None])


@pytest.mark.parametrize(("name", "rounding"), [("bfloat16", "nearest"), ("int8", "nearest"), ("int8", "stochastic")])
def test_with_feedback_the_sum_of_arrivals_tracks_the_sum_of_inputs(name, rounding):
    made = format_class(name)
    wire = made() if rounding == "nearest" else made.unbiased(torch.device("cpu"), seed=0)
    layout = block_map(1, [(2000,)], torch.float32)
    feedback, random = ErrorFeedback(uncoded(2), 0, layout), seeded(2)
    meant = arrived = plain = torch.zeros(2000, dtype=torch.float64)
    for version in range(200):
        gradient = 0.004 + torch.rand(2000, generator=random) * torch.where(torch.arange(2000) % 100 == 0, 10.0, 0.01)
        layout.parameters[0].grad = gradient
        meant = meant + gradient
        plain = plain + wire.unpack(wire.pack(gradient), 2000)
        feedback.add(0)
        arrived = arrived + settled(feedback, wire, codeword_of(feedback, version))
    torch.testing.assert_close(meant - arrived, feedback.memory[0].double(), rtol=0, atol=1e-3)
    # One rounding step at most is missing, where without feedback the roundings of 200 codewords add up.
    assert (meant - arrived).abs().max() < 0.1
    assert (meant - plain).norm() > 5 * (meant - arrived).norm()


@pytest.mark.parametrize("code", [uncoded(2), local_code(2, data_parts=2, blocks=2)], ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_codeword_that_is_not_finite_does_not_spoil_the_next(code, value):
    wire, layout = wire_format("int8"), block_map(code.blocks, [(8,)], torch.float32)
    feedback = ErrorFeedback(code, 0, layout)
    for version, first in enumerate((value, 1.0)):
        layout.parameters[0].grad = torch.full((8,), 1.0)
        layout.parameters[0].grad[0] = first
        feedback.add(0)
        codeword = codeword_of(feedback, version)
        assert codeword.isfinite().all() == (first == 1.0)
        settled(feedback, wire, codeword)
        assert feedback.memory.isfinite().all()


@pytest.mark.parametrize("code", [local_code(3, data_parts=3, blocks=4), uncoded(3), lwpd_code(8, 4, 2)], ids=repr)
def test_what_is_never_settled_comes_with_the_next_codeword(code):
    """A codeword that came too late: nothing of it was taken off, so a later one carries it all."""
    layout, random = block_map(code.blocks), seeded(3)
    feedback = ErrorFeedback(code, 0, layout)
    kept = []
    for version in (0, 1, 2):
        set_gradients(layout, random)
        part = code.parts(0)[0]
        alone = ErrorFeedback(code, 0, layout)
        feedback.add(part)
        alone.add(part)
        kept.append(alone.memory.clone())
        codeword = codeword_of(feedback, version)
    torch.testing.assert_close(feedback.memory, sum(kept))
    settled(feedback, EXACT, codeword)
    if feedback.memory.shape[0] == 1:
        torch.testing.assert_close(feedback.memory, torch.zeros_like(feedback.memory), rtol=0, atol=1e-12)
    else:
        assert feedback.memory.norm() > 0


@pytest.mark.parametrize("code", [local_code(3, data_parts=3, blocks=4), uncoded(3)], ids=repr)
@pytest.mark.parametrize("wire", ["float64", "int8", "ternary"])
def test_settling_again_is_settling_the_last_time_alone(code, wire):
    """An update that is decided again: this worker adds up other positions, at which its codeword arrives whole."""
    layout, wire = block_map(code.blocks, [(64, 64)]), wire_format(wire)
    once, twice = (ErrorFeedback(code, 1, layout) for _ in range(2))
    set_gradients(layout, seeded(5))
    last, exact = slice(50, 60), []
    for feedback in (once, twice):
        feedback.add(1)
        codeword = codeword_of(feedback, 7)
        packed, whole = pack(wire, codeword), codeword.clone()
        if feedback is twice:
            for other in (slice(0, 70), slice(0, 0), slice(55, 100)):
                torch.testing.assert_close(feedback.settle(wire, packed, other), whole[other])
        exact.append(feedback.settle(wire, packed, last))
        torch.testing.assert_close(exact[-1], whole[last])
        assert not codeword_of(feedback, 7)[last].any()
    torch.testing.assert_close(once.memory, twice.memory)


@pytest.mark.parametrize("code", [local_code(3, data_parts=3, blocks=4), uncoded(3)], ids=repr)
def test_what_a_sum_lost_at_some_positions_is_given_back_along_the_row(code):
    """The reducer's memory then makes up for it: sent along the same row again, it arrives."""
    layout = block_map(code.blocks)
    feedback = ErrorFeedback(code, 0, layout)
    assert feedback.takes_residuals
    set_gradients(layout, seeded(6))
    feedback.add(0)
    settled(feedback, EXACT, codeword_of(feedback, 9))
    start, stop = 3, 9
    lost = torch.linspace(-1, 1, stop - start, dtype=torch.float64)
    before = feedback.memory.clone()
    feedback.give_back(start, stop, lost)
    changed = feedback.memory - before
    assert changed[:, :start].abs().max() == changed[:, stop:].abs().max() == 0
    again = codeword_of(feedback, 9)  # the same version has the same row, along which nothing else was left
    torch.testing.assert_close(again[start:stop], lost)
    torch.testing.assert_close(again[:start], torch.zeros(start, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_loss_that_is_not_finite_is_not_given_back():
    layout = block_map(1)
    feedback = ErrorFeedback(uncoded(3), 0, layout)
    codeword_of(feedback, 0)
    feedback.give_back(0, 3, torch.tensor([math.nan, math.inf, 2.0]))
    assert feedback.memory[0, :3].tolist() == [0, 0, 2]


def test_only_where_the_sum_lies_in_the_gradients_space_is_anything_given_back():
    assert not ErrorFeedback(lwpd_code(8, 4, 2), 0, block_map(2)).takes_residuals


@pytest.mark.parametrize("wire", ["float64", "int8", "ternary"])
@pytest.mark.parametrize("code", [uncoded(3), local_code(3, data_parts=3, blocks=2)])
def test_a_codeword_that_does_not_count_after_all_is_all_in_the_memory_again(code, wire):
    wire, layout, random = wire_format(wire), block_map(code.blocks), seeded(7)
    feedback = ErrorFeedback(code, 1, layout)
    set_gradients(layout, random)
    feedback.begin(3)
    feedback.add(1)
    codeword = feedback.codeword()
    before, packed = feedback.memory.clone(), pack(wire, codeword)
    feedback.settle(wire, packed, slice(0, 2))
    assert not torch.equal(feedback.memory, before)
    feedback.unsettle(wire, packed)
    torch.testing.assert_close(feedback.memory, before)
    assert feedback.state_dict()["unsettled"] == 3
    feedback.unsettle(wire, packed)  # once is enough
    torch.testing.assert_close(feedback.memory, before)
