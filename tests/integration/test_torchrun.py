"""torchrun's agent starts ranks again, all of them, and takes them along when it is killed."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.integration.test_several_machines import ROOT, common, free_port

pytestmark = pytest.mark.slow  # test_ways starts torchrun for real
JOB = str(Path(__file__).parent / "job.py")


class Agent(ForkedJob):
    """torchrun, which starts each rank in a session of its own."""

    def __init__(self, *words: str, script: list[str], env: dict[str, str]) -> None:
        super().__init__([sys.executable, "-m", "torch.distributed.run", *words, *script], cwd=ROOT, env=env)

    def processes(self) -> dict[int, str]:
        """Whoever prints to where the agent does: pid -> name."""
        printed, found = os.fstat(self._output.fileno()), {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # a zombie has no files
                    if os.path.samestat(os.stat(entry / "fd/1"), printed):
                        found[int(entry.name)] = (entry / "comm").read_text().strip()
        return found

    def kill_rank(self, rank: int) -> None:
        (pid,) = (pid for pid, name in self.processes().items() if name == f"job-rank-{rank}")
        os.kill(pid, signal.SIGKILL)


def of_two_ranks(*words: str) -> Agent:
    port = free_port()
    words = (*words, "--nproc-per-node", "2", "--master-port", str(port))
    return Agent(*words, script=[JOB, "--uncoded", "--workers", "2"], env=common(port, OMP_NUM_THREADS="1"))


@pytest.mark.parametrize("killed", [0, 1])
def test_the_second_attempt_trains_after_a_rank_was_killed(killed):
    with of_two_ranks("--max-restarts", "1") as job:
        job.wait_for_output("UPDATE 10\n", PATIENCE_S)
        job.kill_rank(killed)
        job._until(lambda: job.output.count("UPDATE 10\n") == 2, PATIENCE_S)
        # Rank 0 or 1, which waits for the killed one to come back, is told to end, and does.
        assert "forcefully exiting via 9" not in job.output
        assert "Traceback" not in job.output


def test_ranks_end_with_their_agent():
    with of_two_ranks() as job:
        job.wait_for_output("UPDATE 10\n", PATIENCE_S)
        job.kill()
        job.wait(ENDING_S)
        job.wait_until_nothing_is_left(ENDING_S)


def test_with_an_agent_for_each_rank_a_killed_one_is_an_erasure():
    port = free_port()
    environment = common(port, OMP_NUM_THREADS="1")
    words = ["--nproc-per-node", "1", "--nnodes", "3", "--master-addr", "localhost", "--master-port", str(port)]
    script = [JOB, "--uncoded", "--workers", "3", "--nodes", "3", "--wait-for", "2", "--heartbeat", "1"]
    with contextlib.ExitStack() as stack:
        agents = [Agent(*words, "--node-rank", str(node), script=script, env=environment) for node in range(3)]
        first, _, third = [stack.enter_context(agent) for agent in agents]
        first.wait_for_output("UPDATE 10\n", PATIENCE_S)
        third.kill_rank(2)
        first.wait_for_output("Worker 2 is lost", PATIENCE_S)
        updates = first.output.count("UPDATE ")
        first._until(lambda: first.output.count("UPDATE ") > updates + 100, PATIENCE_S)
