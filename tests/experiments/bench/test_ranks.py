"""Ranks that only exchange open their links, exchange and close; each link between workers takes three files."""

import subprocess
import sys

import pytest

from experiments.bench.ranks import measured
from tests.commands import PATIENCE_S


@pytest.fixture(scope="module")
def figures():
    return measured(5, updates=3)


def test_all_phases_are_measured(figures):
    assert min(figures) > 0


def test_a_link_to_rank_0_takes_one_file_there_and_a_link_between_workers_three(figures):
    more = measured(7, updates=3)
    assert more.files_of_rank_0 - figures.files_of_rank_0 == 2
    assert more.files_of_a_worker - figures.files_of_a_worker == 3 * 2


@pytest.mark.real_start
def test_the_command_prints_them():
    command = [sys.executable, "-m", "experiments.bench.ranks", "--ranks", "4", "--updates", "2"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    assert told.startswith("4 ranks, 2 updates")
    assert all(word in told for word in ("start", "update", "close", "files of links", "memory"))
