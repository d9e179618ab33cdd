"""Who adds up what: every position exactly once, and every rank reads the same from a decision."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding.wire import CHUNK
from lwpd_lightning.links.header import COORDINATOR, Header, Op, ProtocolError
from lwpd_lightning.reduction.decision import _LEAST_CHUNKS, Decision, share_out

quick = settings(deadline=None, max_examples=100)
sizes = st.integers(1, 5_000) | st.integers(1, 500_000)
groups = st.lists(st.integers(0, 200), min_size=1, max_size=12, unique=True)


@quick
@given(sizes, groups)
def test_slices_cover_every_position_once_in_whole_chunks(size, workers):
    slices = share_out(size, tuple(workers))
    assert [slices[0].start, *(piece.stop for piece in slices)] == [*(piece.start for piece in slices), size]
    assert all(piece.start < piece.stop for piece in slices)
    assert all(piece.start % CHUNK == 0 for piece in slices)  # int8's scales are not shared by two reducers
    assert [piece.reducer for piece in slices] == workers[: len(slices)]


@quick
@given(sizes, groups)
def test_slices_are_even_and_none_is_too_short_to_be_worth_a_message(size, workers):
    lengths = [piece.stop - piece.start for piece in share_out(size, tuple(workers))]
    if len(lengths) > 1:
        assert max(lengths) - min(lengths) <= 2 * CHUNK  # one chunk, and a last one that may be short
        assert min(lengths) > CHUNK * (_LEAST_CHUNKS - 1)
    if size >= CHUNK * _LEAST_CHUNKS * len(workers):
        assert len(lengths) == len(workers)


@st.composite
def decisions(draw):
    count, rows = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    numbers = st.floats(allow_nan=False, width=64)
    return Decision(
        number=draw(st.integers(1, 2**40)),
        version=draw(st.integers(0, 2**40)),
        workers=draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count, unique=True)),
        reducers=draw(st.integers(1, count)),
        weights=torch.tensor(
            draw(st.lists(numbers, min_size=rows * count, max_size=rows * count)), dtype=torch.float64
        ).view(rows, count),
        touched=draw(st.lists(st.booleans(), max_size=9)),
    )


def header_of(decision):
    return Header(
        Op.DECISION, bytes(16), COORDINATOR, decision.version, elements=len(decision.workers), decision=decision.number
    )


@quick
@given(decisions(), st.integers(0, 9))
def test_what_was_packed_is_read_back_wherever_it_lies(decision, offset):
    payload, rest = decision.pack()
    assert payload.dtype == rest.dtype == torch.uint8
    received = torch.cat([torch.zeros(offset, dtype=torch.uint8), payload])[offset:]  # of no alignment
    read = Decision.unpack(header_of(decision), received, rest, decision.rows)
    assert torch.equal(read.weights, decision.weights)
    assert replace(read, weights=None) == replace(decision, weights=None)
    slices = read.slices(500_000)
    assert slices == decision.slices(500_000)
    assert [piece.reducer for piece in slices] == decision.workers[: decision.reducers]


def test_transposed_weights_are_packed_as_they_read():
    weights = torch.arange(6.0, dtype=torch.float64).view(3, 2).T
    decision = Decision(1, 0, [4, 2, 0], 3, weights, [True])
    assert torch.equal(Decision.unpack(header_of(decision), *decision.pack(), 2).weights, weights)


@quick
@given(decisions(), st.integers(-40, 40).filter(bool))
def test_a_payload_of_another_size_is_refused(decision, surplus):
    payload, rest = decision.pack()
    wrong = torch.zeros(max(0, payload.numel() + surplus), dtype=torch.uint8)
    with pytest.raises(
        ProtocolError, match=rf"a decision of {wrong.numel()} bytes on {len(decision.workers)} codewords"
    ):
        Decision.unpack(header_of(decision), wrong, rest, decision.rows)


@quick
@given(decisions(), st.sampled_from([0, 2**63, 2**64 - 1]))
def test_counts_that_lie_are_refused(decision, count):
    header = header_of(decision)._replace(elements=count)
    with pytest.raises(ProtocolError, match=f"on {count} codewords"):
        Decision.unpack(header, *decision.pack(), decision.rows)


@quick
@given(decisions(), st.sampled_from([-1, 0, 7, 2**40]))
def test_nobody_is_asked_to_add_up_who_does_not_count(decision, reducers):
    payload, rest = replace(decision, reducers=reducers).pack()
    with pytest.raises(ProtocolError, match=f"that {reducers} add up"):
        Decision.unpack(header_of(decision), payload, rest, decision.rows)
