"""A header is either read back as it was written or refused with ProtocolError, whatever the bytes."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.links.header import COORDINATOR, INLINE, MAGIC, PROTOCOL_VERSION, Header, Op, ProtocolError

RUN = bytes(range(16))
SIZE = len(Header(Op.STOP, RUN, 0).pack())

u32 = st.integers(0, 2**32 - 1)
i64, u64 = st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
headers = st.builds(
    Header,
    op=st.sampled_from(Op),
    run_id=st.binary(min_size=16, max_size=16),
    worker=u32,
    version=i64,
    epoch=u32,
    batch_index=u32,
    loss=st.floats(allow_nan=False),
    compute_s=st.floats(allow_nan=False),
    samples=u32,
    elements=u64,
    global_step=i64,
    decision=u64,
    oldest=i64,
    checksum=i64,
    rest=i64,
    offset=i64,
    sizes=st.tuples(u64, u64),
    incarnation=i64,
    norm=st.floats(allow_nan=False),
)
fuzz = settings(deadline=None, max_examples=200)


@fuzz
@given(headers)
def test_what_was_packed_is_read_back(header):
    assert Header.unpack(header.pack(), run_id=header.run_id) == header


def test_a_loss_that_is_not_a_number_survives():
    read = Header.unpack(Header(Op.SLICE, RUN, 1, loss=float("nan")).pack(), run_id=RUN)
    assert read.loss != read.loss


def test_defaults_say_inline_and_no_payload():
    header = Header.unpack(Header(Op.STOP, RUN, COORDINATOR).pack(), run_id=RUN)
    assert (header.offset, header.sizes, header.worker) == (INLINE, (0, 0), 2**32 - 1)


@fuzz
@given(headers, st.integers(0, SIZE - 1) | st.integers(SIZE + 1, 2 * SIZE))
def test_another_length_is_refused(header, length):
    frame = (header.pack() * 2)[:length]
    with pytest.raises(ProtocolError, match=f"{SIZE} bytes, this one {length}$"):
        Header.unpack(frame, run_id=header.run_id)


@fuzz
@given(st.binary(max_size=2 * SIZE) | st.binary(min_size=SIZE, max_size=SIZE))
def test_random_bytes_are_refused(frame):
    with pytest.raises(ProtocolError):
        Header.unpack(frame, run_id=RUN)


@fuzz
@given(headers, st.binary(min_size=16, max_size=16))
def test_another_run_is_refused(header, run_id):
    if run_id == header.run_id:
        run_id = bytes(16) if run_id != bytes(16) else bytes([1] * 16)
    with pytest.raises(ProtocolError, match=f"{header.run_id.hex()}, this is run {run_id.hex()}"):
        Header.unpack(header.pack(), run_id=run_id)


@fuzz
@given(headers, st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_stays_in_its_field(header, position, flip):
    """Magic, protocol, op and run are guarded; a flip elsewhere changes that field and nothing else."""
    frame = bytearray(header.pack())
    frame[position] ^= flip
    guarded = position < 6 or 7 <= position < 24
    try:
        read = Header.unpack(bytes(frame), run_id=header.run_id)
    except ProtocolError:
        assert guarded or position == 6
    else:
        assert not guarded
        fields = [each._replace(run_id=b"", op=Op.STOP)._asdict() for each in (read, header)]
        changed = [name for name in fields[0] if repr(fields[0][name]) != repr(fields[1][name])]
        assert len(changed) == (position != 6)
        assert (read.op != header.op) == (position == 6)


def test_unknown_ops_are_refused():
    frame = bytearray(Header(Op.STOP, RUN, 0).pack())
    for op in {*range(256)} - set(Op):
        frame[6] = op
        with pytest.raises(ProtocolError, match=f"unknown op {op}$"):
            Header.unpack(bytes(frame), run_id=RUN)


@pytest.mark.parametrize(("magic", "protocol"), [(b"LWPE", PROTOCOL_VERSION), (MAGIC, PROTOCOL_VERSION + 1)])
def test_another_magic_or_protocol_is_refused(magic, protocol):
    frame = struct.pack("<4sH", magic, protocol) + Header(Op.STOP, RUN, 0).pack()[6:]
    with pytest.raises(ProtocolError, match="magic"):
        Header.unpack(frame, run_id=RUN)
