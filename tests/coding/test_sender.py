"""Senders and receivers: what their state is, and that nothing but it is carried from one codeword to the next."""

import pytest
import torch
from torch.nn import Parameter

from lwpd_lightning.coding import local_code, lwpd_code, uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.compressor import COMPRESSORS
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.sender import PlainSender
from lwpd_lightning.coding.wire import wire_format

CODES = [lwpd_code(8, 4, 2), local_code(3, data_parts=3, blocks=4), uncoded(3)]
NOTHING = slice(0, 0)


def layout(code):
    return BlockMap([Parameter(torch.zeros(shape)) for shape in [(6, 5), (7,), (3, 4, 2)]], code.blocks)


def made(sender, blocks, code, version, seed, wire):
    """The next codeword, settled; every second parameter got a gradient."""
    generator = torch.Generator().manual_seed(seed)
    sender.begin(version)
    for part in code.parts(1):
        for position, p in enumerate(blocks.parameters):
            p.grad = torch.randn(p.shape, generator=generator) if (position + seed) % 2 else None
        sender.add(part)
    codeword = sender.codeword().clone()
    sender.settle(wire, wire.pack(codeword), NOTHING)
    return codeword, sender.held({position for position in range(len(blocks.parameters)) if (position + seed) % 2})


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_sender_goes_on_from_anothers_state(code, name):
    blocks, wire = layout(code), wire_format("int8")
    optimizer = torch.optim.AdamW(blocks.parameters)
    first, second, fresh = (
        COMPRESSORS[name].make(code, 1, blocks, one_version=True, optimizer=optimizer, seed=0)[0] for _ in range(3)
    )
    for version in range(3):
        made(first, blocks, code, version, version, wire)
    second.load_state_dict(first.state_dict())
    for version in range(3, 6):
        expected, held = made(first, blocks, code, version, version, wire)
        codeword, also = made(second, blocks, code, version, version, wire)
        assert torch.equal(codeword, expected)
        assert also == held
        assert torch.equal(made(fresh, blocks, code, version, version, wire)[0], expected) != first.remembers


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_a_codeword_that_was_not_settled_is_made_again_of_the_state_that_holds_it(code):
    """As where a checkpoint is saved while workers compute ahead: the run that goes on computes that version again."""
    blocks, wire = layout(code), wire_format("int8")
    senders = [ErrorFeedback(code, 1, blocks) for _ in range(4)]
    first, second, third, older = senders
    made(first, blocks, code, 0, 0, wire)
    settled = first.state_dict()
    older.load_state_dict(settled)
    first.begin(1)
    for p in blocks.parameters:
        p.grad = torch.ones_like(p)
    for part in code.parts(1):
        first.add(part)
    codeword = first.codeword().clone()
    second.load_state_dict(first.state_dict())
    third.load_state_dict(second.state_dict())
    for sender in (second, third):
        sender.begin(1)
        for part in code.parts(1):
            sender.add(part)
        assert torch.equal(sender.codeword(), codeword)
    older.begin(1)
    for part in code.parts(1):
        older.add(part)
    assert torch.equal(older.codeword(), codeword)
    for sender in senders:
        sender.settle(wire, wire.pack(codeword), NOTHING)
    following = [made(sender, blocks, code, 2, 2, wire)[0] for sender in senders]
    assert all(torch.equal(each, following[0]) for each in following)


def test_a_codeword_that_was_never_settled_comes_with_one_of_a_later_version():
    code = uncoded(3)
    blocks = layout(code)
    first, second = ErrorFeedback(code, 1, blocks), ErrorFeedback(code, 1, blocks)
    for p in blocks.parameters:
        p.grad = torch.ones_like(p)
    first.begin(1)
    first.add(1)
    codeword = first.codeword().clone()
    second.load_state_dict(first.state_dict())
    for version in (2, 3):
        second.begin(version)
        second.add(1)
        assert torch.equal(second.codeword(), version * codeword)


def test_a_state_is_not_what_becomes_of_it():
    code, wire = uncoded(3), wire_format("int8")
    blocks = layout(code)
    sender = ErrorFeedback(code, 1, blocks)
    made(sender, blocks, code, 0, 0, wire)
    state = sender.state_dict()
    before = state["seen"].clone()
    made(sender, blocks, code, 1, 1, wire)
    assert torch.equal(state["seen"], before)


def test_a_state_of_another_kind_is_refused():
    code = local_code(3, data_parts=3, blocks=4)
    blocks = layout(code)
    state = ErrorFeedback(code, 1, blocks).state_dict()
    with pytest.raises(ValueError, match=r"^PlainSender holds nothing of earlier codewords, and is given \['seen', 't"):
        PlainSender(code, 1, blocks).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^LinearReceiver holds nothing of earlier updates"):
        LinearReceiver(code, blocks, one_version=True).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^memory of shape \(4, 16\): this layout's has \(1, 61\)\.$"):
        ErrorFeedback(uncoded(3), 1, layout(uncoded(3))).load_state_dict(state)


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("one_version", [False, True])
def test_all_codewords_by_the_codes_own_weights_are_the_gradient_or_what_one_direction_shows_of_it(code, one_version):
    """Weights for rows, and what is made of rows, are inverse to each other."""
    blocks = layout(code)
    receiver, version = LinearReceiver(code, blocks, one_version), 5
    row = code.at(version)
    coefficients = torch.stack([row.coefficients(worker).mean(dim=0) for worker in range(code.n)]).double()
    codewords = torch.randn(code.n, blocks.block_size, generator=torch.Generator().manual_seed(0)).double()
    weights = receiver.weights(coefficients, version)
    assert weights.shape == (receiver.rows, code.n)
    assert receiver.rows == (1 if one_version and row.direction is not None else code.blocks)
    receiver.gradient((weights @ codewords).float(), version, [True] * 3)
    for p in (reference := layout(code)).parameters:
        p.grad = torch.zeros_like(p)
    reference.scatter((coefficients.T @ codewords).float(), None)
    exact = reference.gather()
    assert (blocks.gather() - exact).abs().max() < 1e-6 * exact.abs().max()
