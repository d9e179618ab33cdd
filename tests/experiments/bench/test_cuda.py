"""The bench of a GPU does the same on the host, so that only the device is new where it first runs on one."""

import re
import sys
from pathlib import Path

import pytest
import torch

from experiments.bench.against_ddp import backend
from experiments.bench.cuda import COLUMNS, WIRES, phases
from lwpd_lightning import lwpd_code, uncoded
from tests.commands import run
from tests.devices import on_each_device

ROOT = Path(__file__).parents[3]


@on_each_device
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("code", [uncoded(2), lwpd_code(2, 2, 2)], ids=repr)
def test_every_phase_takes_its_time(device, code, wire):
    spent = phases(code, wire, hidden=96, device=torch.device(device))
    assert set(spent) == set(COLUMNS)
    assert all(0 < milliseconds < 1e4 for milliseconds in spent.values())


def test_ddp_talks_over_what_its_devices_allow():
    cpu, first, second = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
    assert backend([cpu, cpu]) == "gloo"
    assert backend([first, first]) == "gloo"
    assert backend([first, second]) == "nccl"


@pytest.mark.slow
def test_the_command_on_the_host():
    sizes = ["--hidden", "96", "--part", "8", "--updates", "3", "--pairs", "1"]
    done = run([sys.executable, "-m", "experiments.bench.cuda", "--accelerator", "cpu", *sizes], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if len(row) == 3 + len(COLUMNS) and row[0] != "code"] == [
        *(["uncoded(2)", wire] for wire in WIRES),
        *(["lwpd(2,2,2)", wire] for wire in WIRES[:-1]),
    ]
    assert re.search(r"ddp +[\d.]+ ms/update +1\.00 x ddp .* DDPStrategy over Gloo", done.stdout)
    assert re.search(r"lwpd +[\d.]+ ms/update", done.stdout)


def test_without_a_gpu_it_says_what_would_work():
    done = run([sys.executable, "-m", "experiments.bench.cuda"], cwd=ROOT, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert "--accelerator cpu does the same on the host" in done.stderr
