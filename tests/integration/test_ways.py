"""However ranks are started, K = n equals a single process: hooks, buffers, validation, datamodules, resume."""

import functools
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.testing import Job
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.integration import precise, ways
from tests.integration.hooked import CASES
from tests.integration.test_several_machines import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPTS = ["resumed", "chosen"]
ALL = [*SCRIPTS, *precise.PRECISIONS, *CASES]
# What depends on how ranks are started and find each other; what hooks do, a launcher's ranks show for all.
SOME = [*SCRIPTS, *precise.PRECISIONS, "epoch start", "teacher in a buffer", "validation, then epoch end", "callback"]
JOB = [sys.executable, str(Path(__file__).parent / "ways.py")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single process makes of every case; each once."""
    folder = tmp_path_factory.mktemp("alone")
    ways.prepare(folder)
    return functools.cache(functools.partial(ways.alone, folder=folder))


def check(alone, folder, names):
    for name in names:
        state = torch.load(folder / f"{name}.pt", weights_only=True)
        within = precise.WITHIN.get(name, 1e-10) * torch.linalg.vector_norm(alone(name))
        assert torch.linalg.vector_norm(state - alone(name)) <= within, name


def together(commands, alone, folder, names, port, kind=ForkedJob):
    """Start the commands, each with its environment, and compare what they trained."""
    ways.prepare(folder)
    common = {
        "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "LWPD_RUN_KEY": RunKey.generate().hex(),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    with ExitStack() as stack:
        jobs = [stack.enter_context(kind(command, env={**common, **env})) for command, env in commands]
        results = [job.wait(PATIENCE_S) for job in jobs]
        output = "\n".join(result.output for result in results)
        assert [result.exit_code for result in results] == [0] * len(commands), output
        for job in jobs:
            job.wait_until_nothing_is_left(ENDING_S)
    check(alone, folder, names)


@pytest.mark.parametrize("name", SCRIPTS)
def test_forked(alone, tmp_path, name):
    ways.prepare(tmp_path)
    state, trainer = ways.run(name, tmp_path, devices=2, strategy=ways.strategy("fork"))
    assert torch.linalg.vector_norm(state - alone(name)) <= 1e-10 * torch.linalg.vector_norm(alone(name))
    assert trainer.strategy.last_update.resyncs == 0


def test_rerun(alone, tmp_path):
    names = [*SCRIPTS, "16-mixed", "epoch start", "teacher in a buffer", "validation, then epoch end"]
    command = [*JOB, "--start", "rerun", "--folder", str(tmp_path), "--cases", *names]
    ways.prepare(tmp_path)
    with ForkedJob(command, env={"PYTHONPATH": str(ROOT)}) as job:
        result = job.wait(PATIENCE_S)
        assert result.exit_code == 0, result.output
        job.wait_until_nothing_is_left(ENDING_S)
    check(alone, tmp_path, names)


def test_started_by_a_launcher(alone, tmp_path):
    command = [*JOB, "--folder", str(tmp_path), "--cases", *ALL]
    ranks = [(command, {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}) for rank in range(2)]
    together(ranks, alone, tmp_path, ALL, free_port())


def test_two_nodes(alone, tmp_path):
    command = [*JOB, "--nodes", "2", "--folder", str(tmp_path), "--cases", *SOME]
    together([(command, {"NODE_RANK": str(rank)}) for rank in range(2)], alone, tmp_path, SOME, free_port())


@pytest.mark.real_start
def test_torchrun(alone, tmp_path):
    port = free_port()
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command = [*agent, *JOB[1:], "--folder", str(tmp_path), "--cases", *SOME]
    together([(command, {"OMP_NUM_THREADS": "1"})], alone, tmp_path, SOME, port, Job)


def test_the_environment_is_left_alone():
    assert not {"LWPD_RUN_KEY", "LWPD_FIT", "MASTER_ADDR"} & set(os.environ)
