"""Two machines and outside launchers: the job is started once on each, as its user would, here all on one host."""

import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lwpd_lightning.links.keys import RunKey
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob

pytestmark = pytest.mark.slow
JOB = [sys.executable, str(Path(__file__).parent / "job.py")]
ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def common(port, **environment):
    return {
        "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "LWPD_RUN_KEY": RunKey.generate().hex(),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), **environment,
    }  # fmt: skip


def test_two_nodes_with_two_ranks_each():
    environment = common(free_port())
    command = [*JOB, "--nodes", "2", "--wait-for", "4", "--updates", "5", "--fits", "2"]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(ForkedJob(command, env={**environment, "NODE_RANK": str(rank)})) for rank in range(2)
        ]
        results = [node.wait(PATIENCE_S) for node in nodes]
        assert [result.exit_code for result in results] == [0, 0], results[0].output + results[1].output
        assert results[0].output.count("ARRIVED 4") >= 1  # all four, over both nodes
        assert results[0].output.count("UPDATE 5\n") == 2
        assert "UPDATE" not in results[1].output
        for node in nodes:
            node.wait_until_nothing_is_left(ENDING_S)


def test_a_lost_rank_of_another_machine_is_started_again_by_its_first():
    environment = common(free_port())
    command = [*JOB, "--nodes", "2", "--uncoded", "--wait-for", "3", "--heartbeat", "1"]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(ForkedJob(command, env={**environment, "NODE_RANK": str(rank)})) for rank in range(2)
        ]
        nodes[0].wait_for_output("UPDATE 10\n", PATIENCE_S)
        for times in (1, 2):
            (sibling,) = [
                pid for pid, name in nodes[1].processes().items() if pid != nodes[1].pid and name != "fork-server"
            ]
            os.kill(sibling, signal.SIGKILL)
            nodes[0]._until(lambda times=times: nodes[0].output.count("Worker 3 is back") == times, PATIENCE_S)
        assert nodes[0].output.count("is lost") == 2


def test_ranks_that_a_launcher_started():
    environment = common(free_port(), NODE_RANK="0")
    command = [*JOB, "--updates", "5"]
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(ForkedJob(command, env={**environment, "LOCAL_RANK": str(rank)})) for rank in range(4)
        ]
        results = [rank.wait(PATIENCE_S) for rank in ranks]
        assert [result.exit_code for result in results] == [0] * 4, "".join(result.output for result in results)
        assert "ARRIVED" in results[0].output


def started(stack, count, *options, heartbeat=1):
    """Ranks that a launcher started, which train until they are stopped, and how to start one of them again."""
    environment = common(free_port(), NODE_RANK="0")
    command = [*JOB, "--uncoded", "--workers", str(count), "--wait-for", str(count - 1), "--heartbeat", str(heartbeat)]
    command += options

    def start(rank):
        return stack.enter_context(ForkedJob(command, env={**environment, "LOCAL_RANK": str(rank)}))

    ranks = [start(rank) for rank in range(count)]
    ranks[0].wait_for_output("UPDATE 10\n", PATIENCE_S)
    return ranks, start


def test_a_killed_rank_whose_command_is_started_again_rejoins():
    with ExitStack() as stack:
        ranks, start = started(stack, 3)
        for times in (1, 2):
            ranks[2].kill()
            ranks[2].wait(PATIENCE_S)
            ranks[2] = start(2)
            ranks[0]._until(lambda times=times: ranks[0].output.count("Worker 2 is back") == times, PATIENCE_S)
            assert ranks[0].output.count("is lost") == times


def test_a_second_process_of_a_living_rank_is_refused_by_name():
    with ExitStack() as stack:
        ranks, start = started(stack, 3)
        second = start(2)
        result = second.wait(PATIENCE_S)
        assert result.exit_code != 0
        assert "worker 2 is in this run already: another process with its rank answers" in result.output
        assert "is lost" not in ranks[0].output
        assert ranks[2]._process.poll() is None


def test_a_stopped_rank_is_welcomed_back_when_it_goes_on():
    with ExitStack() as stack:
        ranks, _ = started(stack, 3)
        ranks[2].interrupt(signal.SIGSTOP)
        ranks[0].wait_for_output("Worker 2 is lost", PATIENCE_S)
        ranks[2].interrupt(signal.SIGCONT)
        ranks[0].wait_for_output("Worker 2 is back", PATIENCE_S)
        assert ranks[0].output.count("is lost") == 1


@pytest.mark.parametrize("wide", [[], ["--wide"]], ids=["another adds up", "all add up"])
def test_updates_do_without_a_rank_that_stops_where_it_is_needed_long_before_it_counts_as_lost(wide):
    with ExitStack() as stack:
        ranks, _ = started(stack, 3, "--stop-when-asked", "2", "40", *wide, heartbeat=1000)
        ranks[2].wait_for_output("STOPS", PATIENCE_S)
        made = ranks[0].output.count("UPDATE")
        ranks[0]._until(lambda: ranks[0].output.count("UPDATE") > made + 10, PATIENCE_S)
        ranks[2].interrupt(signal.SIGCONT)
        whole = ranks[0].output.count("ARRIVED 3")
        ranks[0]._until(lambda: ranks[0].output.count("ARRIVED 3") > whole, PATIENCE_S)
        assert "is lost" not in ranks[0].output


def test_a_rank_that_never_starts_is_named_and_no_rank_ends_as_if_all_were_well():
    environment = common(free_port(), NODE_RANK="0")
    command = [*JOB, "--timeout", "15"]
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(ForkedJob(command, env={**environment, "LOCAL_RANK": str(rank)})) for rank in (0, 1, 3)
        ]
        results = [rank.wait(PATIENCE_S) for rank in ranks]
        assert all(result.exit_code for result in results), [result.exit_code for result in results]
        assert "Waiting for workers [2] to join" in results[0].output
        assert "TimeoutError: waited 15 s for workers [2] to join." in results[0].output
        assert "DONE" not in "".join(result.output for result in results)


def test_an_exception_on_one_rank_ends_all_ranks_with_a_code_that_says_so():
    environment = common(free_port(), NODE_RANK="0")
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                ForkedJob(
                    [*JOB, *(["--fail-at", "3"] if rank == 2 else [])], env={**environment, "LOCAL_RANK": str(rank)}
                )
            )
            for rank in range(4)
        ]
        results = [rank.wait(PATIENCE_S) for rank in ranks]
        assert all(result.exit_code for result in results), [result.exit_code for result in results]
        assert "injected failure" in results[0].output
        assert "DONE" not in "".join(result.output for result in results)


def test_rerun_and_forked_ranks_end_with_the_same_weights():
    norms = []
    for start in ("rerun", "fork"):
        command = [*JOB, "--start", start, "--updates", "10", "--workers", "2"]
        with ForkedJob(command, env={"PYTHONPATH": str(ROOT)}) as job:
            result = job.wait(PATIENCE_S)
            assert result.exit_code == 0, result.output
            norms.append(float(result.output.rsplit("DONE ", 1)[1]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_the_environment_is_left_alone():
    assert not {"LWPD_RUN_KEY", "LWPD_FIT", "MASTER_ADDR"} & set(os.environ)
