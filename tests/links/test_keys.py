"""One secret gives every peer its own key pair, the same everywhere."""

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from lwpd_lightning.links.keys import RunKey

secrets = st.binary(min_size=32, max_size=32)


def pairs(key):
    return [key.coordinator(), *(key.worker(i) for i in range(12))]


@settings(deadline=None, max_examples=20)
@given(secrets)
def test_derivation_is_deterministic_and_survives_hex(secret):
    key, again = RunKey(secret), RunKey.from_hex(f" {RunKey(secret).hex()}\n")
    assert pairs(key) == pairs(again)
    assert [key.run_id(g) for g in range(3)] == [again.run_id(g) for g in range(3)]


@settings(deadline=None, max_examples=20)
@given(secrets, secrets)
def test_everything_derived_is_distinct(one, other):
    keys = {one, other}
    everything = [half for s in keys for pair in pairs(RunKey(s)) for half in (pair.public, pair.secret)]
    everything += [RunKey(s).run_id(generation) for s in keys for generation in range(4)]
    assert len(set(everything)) == len(everything)


def test_pairs_are_curve_pairs():
    for pair in pairs(RunKey.generate()):
        assert zmq.curve_public(pair.secret) == pair.public
        assert len(z85.decode(pair.public)) == 32


def test_run_ids_do_not_open_links():
    """The id travels in headers; the key pairs must not be derivable from it by the same construction."""
    key = RunKey.generate()
    padded = RunKey(key.run_id(0) + bytes(16))
    assert padded.coordinator() != key.coordinator()
    assert len(key.run_id(0)) == 16


def test_fresh_keys_differ():
    assert RunKey.generate().hex() != RunKey.generate().hex()


@pytest.mark.parametrize(
    "text", ["", "ab", "g" * 64, "0" * 63, "0" * 65, "0" * 62, "0x" + "0" * 62, "0" * 32 + "é" * 32], ids=repr
)
def test_text_that_is_no_key_is_refused_in_one_sentence_that_does_not_show_it(text):
    with pytest.raises(
        ValueError, match=r"^LWPD_RUN_KEY is not 64 hexadecimal digits; .* makes one that works\.$"
    ) as e:
        RunKey.from_hex(text)
    assert len(text) < 3 or text not in str(e.value)
    assert e.value.__suppress_context__


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secrets_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=f"32 bytes, this one {size}"):
        RunKey(bytes(size))


def test_the_secret_is_not_shown():
    key = RunKey.generate()
    assert key.hex() not in f"{key!r}{key}"
