"""Ranks on hosts of their own whose links are cut and mended: who is cut off is an erasure, and comes back."""

import os
import re
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from experiments.bench.race.testbed import ShapedHosts
from lwpd_lightning.links.keys import RunKey
from tests.commands import PATIENCE_S, ForkedJob

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need Linux, root and iproute2",
    ),
]
ROOT = Path(__file__).parents[2]
HEARTBEAT_S = 1.0
RETURN_S = 120.0
LOST = re.compile(r"Worker (\d+) is lost after update \d+ \(([^\n]*)\): an erasure")


class Run:
    """One rank on each of ``count`` hosts, which trains until it is stopped."""

    def __init__(self, stack, count, wait_for):
        self.bed = stack.enter_context(ShapedHosts(count))
        self.hosts = self.bed.hosts
        environment = {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "LWPD_RUN_KEY": RunKey.generate().hex(),
            "MASTER_ADDR": self.hosts[0].address, "MASTER_PORT": "29400",
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).parent / "job.py"), "--nodes", str(count), "--uncoded",
                   "--workers", str(count), "--wait-for", str(wait_for), "--heartbeat", str(HEARTBEAT_S)]  # fmt: skip
        self.ranks = [
            stack.enter_context(
                ForkedJob([*command, "--host", host.namespace], env={**environment, "NODE_RANK": str(rank)})
            )
            for rank, host in enumerate(self.hosts)
        ]
        self.ranks[0].wait_for_output("UPDATE 20\n", PATIENCE_S)

    @property
    def lost(self):
        """Who was lost so far, and why."""
        return [(int(worker), reason) for worker, reason in LOST.findall(self.ranks[0].output)]

    def trains_on(self):
        """Twenty more updates."""
        count = self.ranks[0].output.count("UPDATE ") + 20
        self._until(lambda: self.ranks[0].output.count("UPDATE ") >= count)

    def loses(self, count):
        """Wait until so many were lost."""
        self._until(lambda: len(self.lost) >= count)

    def comes_back(self, worker, times=1):
        """Wait until a worker counts again."""
        back = self._comes(lambda: self.ranks[0].output.count(f"Worker {worker} is back") >= times, RETURN_S)
        assert back, "the worker stayed away: " + self.ranks[worker].output[-6000:]

    def _until(self, condition):
        assert self._comes(condition, PATIENCE_S), "".join(rank.output[-1500:] for rank in self.ranks)

    def _comes(self, condition, seconds):
        """Whether it does in time; the run must go on meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.ranks[0]._process.poll() is None, self.ranks[0].output[-3000:]
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    @contextmanager
    def cut(self, one, others):
        """No packet passes between a host and ``others``, as behind a firewall that drops them."""
        pairs = [pair for other in others for pair in ((one, other), (other, one))]
        for here, there in pairs:
            self.bed.cut(here, there)
        yield
        for here, there in pairs:
            self.bed.mend(here, there)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("wait_for", [4, 6])
def test_of_two_workers_that_do_not_reach_each_other_one_is_an_erasure_and_comes_back(stack, wait_for):
    run = Run(stack, 6, wait_for)
    with run.cut(2, [3]):
        run.loses(1)
        run.trains_on()
        worker, reason = run.lost[0]
        assert (worker, reason) in ((2, "its link to worker 3 ended"), (3, "its link to worker 2 ended"))
    run.comes_back(worker)
    run.trains_on()
    assert {other for other, _ in run.lost} == {worker}  # which may have tried while the link was cut


def test_a_worker_that_reaches_rank_0_alone_is_the_one_that_is_lost(stack):
    run = Run(stack, 6, 4)
    with run.cut(2, [1, 3, 4, 5]):
        run.loses(1)
        run.trains_on()
        assert {worker for worker, _ in run.lost} == {2}
    run.comes_back(2)
    run.trains_on()
    assert {worker for worker, _ in run.lost} == {2}


def test_a_worker_whose_host_was_cut_off_comes_back(stack):
    run = Run(stack, 4, 3)
    with run.cut(1, [0, 2, 3]):
        run.loses(1)
        run.trains_on()
    run.comes_back(1)
    run.trains_on()
    assert {worker for worker, _ in run.lost} == {1}


def test_workers_wait_for_a_rank_0_whose_link_was_down(stack):
    run = Run(stack, 3, 3)
    with run.cut(0, [1, 2]):
        run.loses(2)
        time.sleep(2 * HEARTBEAT_S)  # the fault itself, not a wait for it
    for worker in (1, 2):
        run.comes_back(worker)
    run.trains_on()
    assert sorted(worker for worker, _ in run.lost) == [1, 2]
