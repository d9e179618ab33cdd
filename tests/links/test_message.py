"""Messages by value and by reference: what a peer says about its payloads is never believed unchecked."""

import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.links.arena import Arena
from lwpd_lightning.links.header import HEADER_BYTES, INLINE, Header, Op, ProtocolError
from lwpd_lightning.links.message import Messages, text, words

RUN = bytes(range(16))
PAGE = 4096
quick = settings(deadline=None, max_examples=60)
payloads = st.binary(max_size=3 * PAGE).map(lambda b: torch.tensor(list(b), dtype=torch.uint8))


def on_the_wire(frames):
    """The frames as the peer gets them: bytes elsewhere."""
    return [memoryview(bytearray(frame)) for frame in frames]


def codeword(**fields):
    return Header(Op.SLICE, RUN, 3, version=7, **fields)


@quick
@given(payloads, payloads)
def test_by_value(payload, rest):
    messages = Messages(RUN, arena=None)
    header, first, second = messages.read(on_the_wire(messages.pack(codeword(), payload, rest)))
    assert header == codeword(sizes=(payload.numel(), rest.numel()))
    assert torch.equal(first, payload)
    assert torch.equal(second, rest)


@quick
@given(st.lists(payloads, min_size=1, max_size=4), st.data())
def test_by_reference(values, data):
    arena = Arena([value.numel() for value in values])
    slots = [arena.take(value.numel()).copy_(value) for value in values]
    messages = Messages(RUN, arena)
    for slot, value in zip(slots, values, strict=True):
        rest = data.draw(payloads)
        frames = messages.pack(codeword(), slot, rest)
        assert len(frames) == 1
        header, first, second = messages.read(on_the_wire(frames))
        assert torch.equal(first, value)
        assert torch.equal(second, rest)
        assert (header.offset != INLINE) == (first.numel() > 0)
        if first.numel():
            assert first.data_ptr() == slot.data_ptr()


def test_memory_outside_the_arena_travels_by_value():
    arena = Arena([8])
    messages = Messages(RUN, arena)
    payload = torch.arange(8, dtype=torch.uint8)
    assert arena.offset(payload) is None
    header, first, _ = messages.read(on_the_wire(messages.pack(codeword(), payload)))
    assert header.offset == INLINE
    assert torch.equal(first, payload)


def test_reading_by_value_copies_nothing():
    for size, place in ((4, 0), (1 << 16, 1)):  # behind the header, and in a frame of its own
        frames = on_the_wire(Messages(RUN, None).pack(codeword(), torch.zeros(size, dtype=torch.uint8)))
        _, payload, _ = Messages(RUN, None).read(frames)
        frames[place][-2] = 9
        assert payload[-4:].tolist() == [0, 0, 9, 0]


@quick
@given(st.lists(st.integers(0, 3 * PAGE), min_size=1, max_size=5))
def test_slots_start_on_pages_and_do_not_meet(sizes):
    arena = Arena(sizes)
    slots = [arena.take(size) for size in sizes]
    for value, slot in enumerate(slots):
        slot.fill_(value + 1)
    for value, (slot, size) in enumerate(zip(slots, sizes, strict=True)):
        assert slot.numel() == size
        assert torch.all(slot == value + 1)
        if size:
            assert slot.data_ptr() % PAGE == 0
            assert arena.at(arena.offset(slot), size).data_ptr() == slot.data_ptr()


def test_an_arena_gives_no_more_than_it_has():
    arena = Arena([PAGE])
    arena.take(1)
    with pytest.raises(MemoryError, match="4096 bytes"):
        arena.take(1)


@quick
@given(
    st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 3 * PAGE), st.integers(0, 2**64 - 1) | st.integers(0, 3 * PAGE)
)
def test_references_reach_only_the_arena(offset, size):
    arena = Arena([PAGE, PAGE])
    messages = Messages(RUN, arena)
    frames = [codeword(offset=offset, sizes=(size, 0)).pack()]
    if offset >= 0 and offset + size <= 2 * PAGE:
        assert messages.read(on_the_wire(frames))[1].numel() == size
    elif offset == INLINE and size == 0:
        assert messages.read(on_the_wire(frames))[1].numel() == 0
    else:
        with pytest.raises(ProtocolError):
            messages.read(on_the_wire(frames))


def test_references_without_shared_memory_are_refused():
    frames = [codeword(offset=0, sizes=(8, 0)).pack()]
    with pytest.raises(ProtocolError, match="no memory is shared"):
        Messages(RUN, None).read(on_the_wire(frames))


@quick
@given(payloads, payloads, st.tuples(st.integers(0, 4 * PAGE), st.integers(0, 2**64 - 1)))
def test_sizes_that_lie_are_refused(payload, rest, sizes):
    messages = Messages(RUN, None)
    frames = messages.pack(codeword(), payload, rest)
    header, behind = frames[0][:HEADER_BYTES], frames[0][HEADER_BYTES:]
    frames[0] = Header.unpack(header, run_id=RUN)._replace(sizes=sizes).pack() + behind
    if sizes == (payload.numel(), rest.numel()):
        messages.read(on_the_wire(frames))
    else:
        with pytest.raises(ProtocolError, match=r"payloads of|frames instead of"):
            messages.read(on_the_wire(frames))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_missing_and_surplus_frames_are_refused(count):
    frames = [codeword(sizes=(1 << 16, 0)).pack(), *[bytes(1 << 16)] * 8][:count]
    with pytest.raises(ProtocolError, match=f"{count} frames instead of 2"):
        Messages(RUN, None).read(on_the_wire(frames))


def test_a_short_payload_in_a_frame_of_its_own_is_refused():
    with pytest.raises(ProtocolError, match="2 frames instead of 1"):
        Messages(RUN, None).read(on_the_wire([codeword(sizes=(5, 0)).pack(), b"12345"]))


@pytest.mark.parametrize(("size", "frames"), [(0, 1), (1 << 15, 1), ((1 << 15) + 1, 2)])
def test_messages_with_short_payloads_are_one_frame(size, frames):
    messages = Messages(RUN, None)
    packed = messages.pack(codeword(), torch.full((size,), 7, dtype=torch.uint8), torch.arange(9, dtype=torch.uint8))
    assert len(packed) == frames
    assert sum(len(frame) for frame in packed) == HEADER_BYTES + 9 + size
    _, payload, rest = messages.read(on_the_wire(packed))
    assert payload.tolist() == [7] * size
    assert rest.tolist() == list(range(9))


@quick
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_garbage_is_refused(frames):
    with pytest.raises(ProtocolError):
        Messages(RUN, Arena([PAGE])).read(on_the_wire(frames))


def _increment(slot, frames, answers):
    """In the child: what the parent wrote is here, and what is written here the parent sees."""
    arena = answers["arena"]
    _, payload, _ = Messages(RUN, arena).read(on_the_wire(frames))
    slot.copy_(payload + 1)
    answers["pipe"].send([bytes(frame) for frame in Messages(RUN, arena).pack(codeword(), slot)])


def test_an_arena_is_shared_with_a_forked_child():
    arena = Arena([100, 100])
    down, up = arena.take(100), arena.take(100)
    messages = Messages(RUN, arena)
    here, there = multiprocessing.Pipe()
    down.copy_(torch.arange(100, dtype=torch.uint8))
    frames = messages.pack(codeword(), down)
    child = multiprocessing.get_context("fork").Process(
        target=_increment, args=(up, frames, {"arena": arena, "pipe": there})
    )
    child.start()
    assert here.poll(30)
    header, payload, _ = messages.read(on_the_wire(here.recv()))
    child.join(30)
    assert child.exitcode == 0
    assert header.offset == PAGE
    assert payload.data_ptr() == up.data_ptr()
    assert payload.tolist() == list(range(1, 101))


@quick
@given(st.text(st.characters(codec="utf-8")))
def test_words_survive(message):
    assert words(text(message)) == message


def test_what_is_no_text_is_told_all_the_same():
    """A traceback may name a file whose name is no UTF-8, and a peer may send anything."""
    assert words(text("in file caf\udce9.py")) == "in file caf?.py"
    assert "failed" in words(torch.tensor(list(b"\xff\xfe failed"), dtype=torch.uint8))


@pytest.mark.parametrize("size", [1 << 17, (1 << 17) + 1, 5 << 17, 700_001])
def test_a_large_payload_travels_in_pieces(size):
    messages = Messages(RUN, None)
    payload = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    frames = messages.pack(codeword(), payload, torch.ones(3, dtype=torch.uint8))
    assert max(len(bytes(frame)) for frame in frames) <= 1 << 17
    _, read, rest = messages.read(on_the_wire(frames))
    assert torch.equal(read, payload)
    assert rest.tolist() == [1, 1, 1]
    if len(frames) > 2:
        with pytest.raises(ProtocolError):
            messages.read(on_the_wire(frames[:-1]))
