"""torchft's bench, where torchft is not: it is an extra of its own."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.commands import run

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(find_spec("torchft") is not None, reason="torchft is installed")
def test_without_its_extra_the_command_says_what_to_install():
    done = run([sys.executable, "-m", "experiments.bench.torchft", "--links", "unshaped"], cwd=ROOT)

    assert done.returncode == 1
    assert done.stderr == "torchft is not installed: pip install -e '.[torchft]'.\n"
