"""A few of the seeded schedules: `python -m experiments.chaos.schedules` runs as many as one likes."""

import sys

import pytest

from tests.commands import PATIENCE_S, run
from tests.experiments.bench.hosts import needs_root


def schedules(tmp_path, *words):
    return run(
        [sys.executable, "-m", "experiments.chaos.schedules", "--untimed", "--out", str(tmp_path), *words],
        cwd=tmp_path, timeout_s=2 * PATIENCE_S - 60,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", ["forks", pytest.param("hosts", marks=needs_root)])
def test_runs_with_faults_hang_lose_nothing_and_give_up_nobody_healthy(tmp_path, place):
    done = schedules(tmp_path, "--place", place, "--count", "1", "--first", {"forks": "9", "hosts": "10"}[place])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 schedules, 0 with violations" in done.stdout
