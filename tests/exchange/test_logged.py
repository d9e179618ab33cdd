"""What a training step logged, on its way to rank 0."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwpd_lightning.exchange.update import Logged, from_json, to_json

ENTRY = {"value": 0.5, "reduce_fx": "mean", "options": {"prog_bar": True, "batch_size": 8, "on_epoch": None}}


def test_it_comes_back_as_it_was():
    logged = {"loss": Logged(0.5, "mean", {"prog_bar": True}), "läuft/2": Logged(float("inf"), "max", {})}
    assert from_json(to_json(logged)) == logged
    assert from_json(to_json({})) == {}


@pytest.mark.parametrize(
    "told",
    [
        "}",
        "[1]",
        "7",
        "[" * 60_000,
        '{"loss": 0.5}',
        *(
            json.dumps(entries)
            for entries in (
                {"": ENTRY},
                {"loss\n": ENTRY},
                {"\ud800": ENTRY},
                {"loss/dataloader_idx_1": ENTRY},
                {"loss": {**ENTRY, "more": 1}},
                {"loss": {"value": 0.5, "options": {}}},
                {"loss": {**ENTRY, "value": "0.5"}},
                {"loss": {**ENTRY, "value": 10**400}},
                {"loss": {**ENTRY, "reduce_fx": "median"}},
                {"loss": {**ENTRY, "reduce_fx": ["mean"]}},
                {"loss": {**ENTRY, "options": ["prog_bar"]}},
                {"loss": {**ENTRY, "options": {"rank_zero_only": True}}},
                {"loss": {**ENTRY, "options": {"batch_size": -1}}},
                {"loss": {**ENTRY, "options": {"prog_bar": "yes"}}},
            )
        ),
    ],
    ids=lambda told: told[:30],
)
def test_what_rank_0_could_not_log_is_refused(told):
    with pytest.raises(ValueError, match="no "):
        from_json(told)


@given(st.data())
def test_anything_is_read_or_refused(data):
    told = bytearray(json.dumps({"loss": ENTRY, "acc": ENTRY}), "ascii")
    for _ in range(data.draw(st.integers(1, 8))):
        told[data.draw(st.integers(0, len(told) - 1))] = data.draw(st.integers(0, 255))
    try:
        logged = from_json(told.decode(errors="replace"))
    except ValueError:
        return
    assert all(isinstance(entry.value, float) for entry in logged.values())
    assert from_json(to_json(logged)).keys() == logged.keys()
