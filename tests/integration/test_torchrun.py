"""torchrun's agent starts ranks again, all of them, and takes them along when it is killed."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from lwpd_lightning.testing import Job
from tests.commands import ENDING_S, PATIENCE_S
from tests.integration.test_several_machines import ROOT, common, free_port

pytestmark = [pytest.mark.slow, pytest.mark.real_start]
JOB = [str(Path(__file__).parent / "job.py"), "--uncoded", "--workers", "2"]


class Agent(Job):
    """torchrun with two ranks, each of which it starts in a session of its own."""

    def __init__(self, *options: str) -> None:
        port = free_port()
        agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        environment = common(port, OMP_NUM_THREADS="1")
        self._key = f"LWPD_RUN_KEY={environment['LWPD_RUN_KEY']}".encode()
        super().__init__([*agent, *options, *JOB], cwd=ROOT, env=environment)

    def processes(self) -> dict[int, str]:
        """Whoever knows the run's key: pid -> rank; "agent" where it has none."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "environ").read_bytes().split(b"\0")  # of a zombie there are none
                    if self._key in words:
                        ranks = [word.removeprefix(b"RANK=").decode() for word in words if word.startswith(b"RANK=")]
                        found[int(entry.name)] = ranks[0] if ranks else "agent"
        return found

    def kill_rank(self, rank: int) -> None:
        (pid,) = (pid for pid, name in self.processes().items() if name == str(rank))
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_second_attempt_trains_after_a_rank_was_killed(killed):
    with Agent("--max-restarts", "1") as job:
        job.wait_for_output("UPDATE 10\n", PATIENCE_S)
        job.kill_rank(killed)
        job._until(lambda: job.output.count("UPDATE 10\n") == 2, PATIENCE_S)


def test_ranks_end_with_their_agent():
    with Agent() as job:
        job.wait_for_output("UPDATE 10\n", PATIENCE_S)
        job.kill()
        job.wait(ENDING_S)
        job.wait_until_nothing_is_left(ENDING_S)
