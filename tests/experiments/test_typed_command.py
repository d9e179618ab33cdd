"""Commands to be typed next begin as the one that was typed."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments.typed_command import ENV_ATTEMPT, beside, command_line


@pytest.mark.parametrize(
    ("typed", "program", "describes"),
    [
        (["python", "-m", "experiments.train"], "python -m experiments.train", "python -m experiments.describe"),
        (
            [".venv/bin/python", "-X", "dev", "-m", "experiments.train"],
            ".venv/bin/python -X dev -m experiments.train",
            ".venv/bin/python -m experiments.describe",
        ),
        (
            ["/my env/bin/python", "-m", "experiments.train"],
            "'/my env/bin/python' -m experiments.train",
            "'/my env/bin/python' -m experiments.describe",
        ),
        (["/env/bin/python", "env/bin/lwpd-train"], "env/bin/lwpd-train", "env/bin/lwpd-describe"),
    ],
)
def test_the_interpreter_is_as_it_was_typed(monkeypatch, typed, program, describes):
    monkeypatch.setattr(sys, "orig_argv", [*typed, "seed=1", "-m"])
    monkeypatch.setattr(sys, "argv", [typed[-1], "-m", "seed=1"])  # options first

    assert command_line(["a b"]) == f"{program} 'a b'"
    assert beside("describe") == describes


def test_an_entry_point_that_was_found_on_the_path_is_its_name(monkeypatch, tmp_path):
    script = tmp_path / "lwpd-train"
    script.touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(script), "seed=1"])
    monkeypatch.setattr(sys, "argv", [str(script), "seed=1"])

    assert command_line(["seed=1"]) == "lwpd-train seed=1"
    assert beside("describe") == "lwpd-describe"


def test_where_nothing_was_typed_it_is_this_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "ipykernel", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "argv", ["train", "seed=1"])

    assert command_line(["seed=1"]) == f"{sys.executable} -m experiments.train seed=1"


def test_a_run_that_is_started_again_knows_what_was_typed(monkeypatch):
    monkeypatch.setenv(ENV_ATTEMPT, json.dumps([["python", "-m", "experiments.train"], ["restarts=1"]]))

    assert command_line(["seed=1"]) == "python -m experiments.train seed=1"


def test_no_command_that_is_shown_names_an_interpreter_itself():
    folder = Path(__file__).parents[2] / "experiments"
    shown = [path.name for path in folder.glob("*.py") if re.search(r'[^="]python -m \{', path.read_text())]

    assert shown == []
