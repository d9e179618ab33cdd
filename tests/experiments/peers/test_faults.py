"""What is left when a peer's job is interrupted, terminated or loses a rank: real processes, real signals."""

import signal
import sys
from pathlib import Path

import pytest

from lwpd_lightning.links.rendezvous import LOOPBACK, listen
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def job(*arguments, **environment):
    command = [sys.executable, "-m", "tests.experiments.peers.job", *arguments]
    return ForkedJob(command, cwd=ROOT, env={"PYTHONUNBUFFERED": "1", **environment})


def test_ctrl_c_leaves_nothing():
    with job() as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.interrupt()
        assert running.wait(ENDING_S).exit_code != 0
        running.wait_until_nothing_is_left(ENDING_S)


def test_sigterm_ends_all_ranks():
    with job("--peer", "powersgd") as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.kill(signum=signal.SIGTERM)
        result = running.wait(ENDING_S)
        assert result.exit_code == 128 + signal.SIGTERM
        assert "DONE" not in result.output
        running.wait_until_nothing_is_left(ENDING_S)


def test_ranks_end_when_rank_0_is_killed():
    with job() as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.kill()
        running.wait(ENDING_S)
        running.wait_until_nothing_is_left(ENDING_S)


def test_a_rank_killed_from_outside_ends_the_job_and_is_named():
    with job("--peer", "powersgd") as running:
        running.wait_for_output("UPDATE 3", PATIENCE_S)
        running.kill(running.rank(2))
        result = running.wait(ENDING_S)
        assert result.exit_code not in (0, None)
        assert "rank 2 was killed by SIGKILL" in result.output
        running.wait_until_nothing_is_left(ENDING_S)


def test_two_machines_train_what_one_does():
    """Two processes that only share an address, as on two machines; each has two of the four ranks."""
    with listen(LOOPBACK, 0) as listener:
        port = str(listener.getsockname()[1])
    meeting = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    with job("--updates", "12") as one:
        alone = one.wait(PATIENCE_S)
    with (
        job("--updates", "12", "--nodes", "2", NODE_RANK="0", **meeting) as first,
        job("--updates", "12", "--nodes", "2", NODE_RANK="1", **meeting) as second,
    ):
        results = [first.wait(PATIENCE_S), second.wait(PATIENCE_S)]
    assert [result.exit_code for result in (alone, *results)] == [0, 0, 0], results
    (expected,) = [line for line in alone.output.splitlines() if line.startswith("DONE")]
    for result in results:
        (got,) = [line for line in result.output.splitlines() if line.startswith("DONE")]
        assert float(got.split()[1]) == pytest.approx(float(expected.split()[1]), rel=1e-6)
