"""A wire format and a compressor are added from outside, without a line of the package, and trained with."""

import functools
import sys
from pathlib import Path

import pytest
import torch

from lwpd_lightning import LWPDStrategy
from lwpd_lightning.coding import wire
from lwpd_lightning.coding.compressor import COMPRESSORS
from tests.commands import PATIENCE_S, ForkedJob
from tests.integration import added

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _for_this_test_alone(monkeypatch):
    monkeypatch.setattr(wire, "_FORMATS", dict(wire._FORMATS))
    monkeypatch.setitem(COMPRESSORS, "flipped", None)
    added.add()


@functools.cache
def plain():
    return added.train("plain")


@pytest.mark.parametrize("name", ["format", "fed back"])
def test_a_format_from_outside_trains_to_its_rounding(name):
    assert 0 < (added.train(name) - plain()).norm() < 2e-3 * plain().norm()


def test_a_compressor_from_outside_trains_as_it_should():
    """Signs that all ranks flip and flip back change no bit of a sum."""
    assert torch.equal(added.train("compressor"), plain())


def test_both_together_train_to_the_formats_rounding():
    assert 0 < (added.train("both") - plain()).norm() < 2e-3 * plain().norm()


@pytest.mark.slow
def test_processes_that_run_the_script_again_add_it_again(tmp_path):
    command = [sys.executable, added.__file__, "--start", "rerun", "--name", "both", "--file", str(tmp_path / "w.pt")]
    with ForkedJob(command, env={"PYTHONPATH": str(ROOT)}) as job:
        result = job.wait(PATIENCE_S)
    assert result.exit_code == 0, result.output
    assert torch.equal(torch.load(tmp_path / "w.pt", weights_only=True), added.train("both"))


def test_what_was_added_is_named_among_the_choices():
    with pytest.raises(ValueError, match=r"wire_dtype='other' is unknown: use one of None, .*'ternary', 'float16'\.$"):
        LWPDStrategy(wire_dtype="other")
    with pytest.raises(ValueError, match=r"compressor='other' is unknown: use one of None, 'plain', .*, 'flipped'\.$"):
        LWPDStrategy(compressor="other")
    with pytest.raises(ValueError, match=r"a wire_dtype of 'bfloat16', 'int8', 'sign', 'ternary' or 'float16'"):
        LWPDStrategy(error_feedback=True)
