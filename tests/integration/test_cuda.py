"""On a GPU, alone or shared by several ranks, K = n equals a single process on it: `pytest -m cuda`.

One rank trains in this process, several in processes of their own: there is no forking where torch sees a GPU. What is
trained on the host here is what every other test trains.
"""

import functools
import sys
from pathlib import Path

import pytest
import torch

from lwpd_lightning import LWPDStrategy, uncoded
from lwpd_lightning.testing import Job
from tests.commands import PATIENCE_S
from tests.devices import CUDA, on_cuda
from tests.integration import precise, ways
from tests.integration.hooked import CASES
from tests.integration.models import quiet_trainer
from tests.integration.test_several_machines import free_port
from tests.integration.test_ways import ALL, JOB, SCRIPTS, check, together

ROOT = Path(__file__).parents[2]
ON_THE_HOST = ["epoch start", "teacher in a buffer", "unfrozen", "accumulated", *precise.PRECISIONS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single process makes of every case on the GPU; each once."""
    folder = tmp_path_factory.mktemp("alone")
    ways.prepare(folder)
    return functools.cache(functools.partial(ways.alone, folder=folder, accelerator="gpu"))


@pytest.mark.parametrize(
    ("accelerator", "name"),
    [("cpu", name) for name in ON_THE_HOST]
    + [pytest.param("gpu", name, marks=CUDA.marks) for name in (*precise.PRECISIONS, *CASES)],
)
def test_one_rank(tmp_path, accelerator, name):
    settings = {"accelerator": accelerator, "strategy": ways.strategy("rerun", accelerator, ranks=1)}
    state, trainer = ways.run(name, tmp_path, devices=1, **settings)
    if name in precise.PRECISIONS:  # whose batch has one part
        reference, within = precise.train_parts(name, 1, accelerator), precise.WITHIN[name]
    else:
        reference, within = ways.alone(name, tmp_path, accelerator), 1e-10
    assert torch.linalg.vector_norm(state - reference) <= within * torch.linalg.vector_norm(reference)
    assert trainer.strategy.root_device.type == precise.DEVICES[accelerator]
    assert trainer.strategy.last_update.resyncs == 0


@on_cuda
def test_two_ranks_that_a_launcher_started(alone, tmp_path):
    command = [*JOB, "--accelerator", "gpu", "--folder", str(tmp_path), "--cases", *ALL]
    ranks = [(command, {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}) for rank in range(2)]
    together(ranks, alone, tmp_path, ALL, free_port(), Job)


@on_cuda
def test_two_ranks_by_rerunning_the_script(alone, tmp_path):
    names = [*SCRIPTS, "16-mixed"]
    ways.prepare(tmp_path)
    command = [*JOB, "--accelerator", "gpu", "--start", "rerun", "--folder", str(tmp_path), "--cases", *names]
    with Job(command, env={"PYTHONPATH": str(ROOT)}) as job:
        result = job.wait(PATIENCE_S)
        assert result.exit_code == 0, result.output
        job.wait_until_nothing_is_left(30)
    check(alone, tmp_path, names)


def final_norm(*arguments):
    job = [sys.executable, str(Path(__file__).parent / "job.py"), "--updates", "10", "--wait-for", "4"]
    with Job([*job, "--start", "rerun", *arguments], env={"PYTHONPATH": str(ROOT)}) as running:
        result = running.wait(PATIENCE_S)
        assert result.exit_code == 0, result.output
        return float(result.output.rsplit("DONE ", 1)[1])


@on_cuda
def test_four_ranks_on_one_gpu_equal_four_on_the_cpu():
    assert final_norm("--accelerator", "gpu") == pytest.approx(final_norm(), rel=1e-4)


@on_cuda
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_nothing_is_forked_where_torch_sees_a_gpu(accelerator):
    """Not even a CPU's ranks: torch's backward has threads for the GPU, which a fork would not have."""
    device = precise.DEVICES[accelerator]
    with pytest.raises(ValueError, match=rf"start_method='fork' with device '{device}'.*use 'rerun'\.$"):
        quiet_trainer(accelerator=accelerator, strategy=ways.strategy("fork", accelerator), **devices(accelerator))
    strategy = LWPDStrategy(code=uncoded(2), parallel_devices=[torch.device(device, 0)] * 2)
    trainer = quiet_trainer(accelerator=accelerator, strategy=strategy, **devices(accelerator))
    assert trainer.strategy.settings.start_method == "rerun"


def devices(accelerator):
    return {"devices": 2} if accelerator == "cpu" else {}
