"""What an update costs on a GPU, step by step and against DDP: ``python -m experiments.bench.cuda``.

    python -m experiments.bench.cuda [--hidden 3000] [--updates 60] [--pairs 2] [--accelerator cpu]

First, one after the other in this process, what a rank of two does for an update of ``uncoded(2)`` and of
``lwpd_code(2, 2, 2)`` at K = n: encode its gradients, pack the codeword and bring it to the host, add up half of the
positions there, read the decoded gradient, bring it back and scatter it, hash its parameters, step. Then whole updates
of two ranks, started by rerun, against DDP (`experiments.bench.against_ddp`): on one GPU that they share, or on two.
``--accelerator cpu`` does the same on the host.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from lwpd_lightning.coding import Code, lwpd_code, uncoded
from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.wire import CHUNK, wire_format
from lwpd_lightning.exchange.state import Checksums
from lwpd_lightning.launcher import suggested_threads
from lwpd_lightning.links.staging import Staging

from . import against_ddp
from .perceptron import Perceptron

RANKS, ROUNDS = 2, 15
WIRES = ("float32", "bfloat16", "int8", "ternary")
COLUMNS = ("encode", "pack", "to host", "add", "read", "scatter", "hash", "step")


def phases(code: Code, wire_name: str, hidden: int, device: torch.device) -> dict[str, float]:
    """Milliseconds, as medians, that each phase of an update takes one rank; the device has finished before and after.

    Args:
        code: of two workers.
        wire_name: how codewords and decoded gradients travel.
        hidden: width of the perceptron.
        device: where the model lies.
    """
    model = Perceptron((hidden, hidden - 64), lr=0.05, momentum=0.9).to(device)
    optimizer = model.configure_optimizers()
    blocks, wire, staging = BlockMap(model.parameters(), code.blocks), wire_format(wire_name), Staging(device)
    for p in blocks.parameters:
        p.grad = torch.randn_like(p)
    checksums = Checksums(model, blocks.parameters)
    codeword, size = blocks.codeword(), blocks.block_size
    rows = [code.coefficients(0)[part] for part in code.parts(0)]
    packed = wire.pack(codeword.normal_())
    sent = staging.to_host(packed).clone()
    half = size // RANKS // CHUNK * CHUNK  # this rank adds up the first positions
    slices = [wire.cut(sent, size, 0, half) for _ in range(RANKS)]
    total, weights = torch.zeros(code.blocks, half), [0.5] * code.blocks
    part = wire.pack(torch.randn(code.blocks * size))  # the decoded gradient, as if in one part
    decoded = torch.empty(code.blocks, size)

    def encode() -> None:
        codeword.zero_()
        for row in rows:
            blocks.encode(row, codeword)

    def add() -> None:
        total.zero_()
        for arrived in slices:
            if code.blocks == 1:
                wire.add_to(arrived, total[0], weights[0])
            else:
                accumulate(total, weights, wire.unpack(arrived, half))
        wire.pack(total.flatten())

    def scatter() -> None:
        blocks.scatter(decoded.to(device), None, views=True)

    acts: dict[str, Callable[[], object]] = {
        "encode": encode,
        "pack": lambda: wire.pack(codeword),
        "to host": lambda: staging.to_host(packed),
        "add": add,
        "read": lambda: wire.unpack_into(part, decoded.view(-1)),
        "scatter": scatter,
        "hash": checksums.take,
        "step": optimizer.step,
    }
    spent: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, act in acts.items():
            spent[name].append(_seconds(act, device))
    return {name: 1e3 * statistics.median(seconds[1:]) for name, seconds in spent.items()}


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    started = time.perf_counter()
    act()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=3000, help="width; 3000 gives nine million parameters")
    parser.add_argument("--part", type=int, default=256, help="samples that a rank computes in one update")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--accelerator", default="gpu", choices=["cpu", "gpu"])
    options = parser.parse_args()
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        sys.exit("--accelerator gpu: torch sees no CUDA device here; --accelerator cpu does the same on the host.")
    device = torch.device("cuda", 0) if options.accelerator == "gpu" else torch.device("cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the host"
    torch.set_num_threads(suggested_threads(RANKS))
    print(f"one rank of {RANKS}, on {where} with torch {torch.__version__}, milliseconds an update")
    print(f"{'code':>11} {'wire':>9}", *(f"{name:>8}" for name in (*COLUMNS, "all")))
    for name, code in (("uncoded(2)", uncoded(RANKS)), ("lwpd(2,2,2)", lwpd_code(RANKS, RANKS, 2))):
        for wire in WIRES if code.blocks == 1 else WIRES[:-1]:  # a ternary sum has one row
            spent = phases(code, wire, options.hidden, device)
            figures = [*(spent[column] for column in COLUMNS), sum(spent.values())]
            print(f"{name:>11} {wire:>9}", *(f"{figure:8.2f}" for figure in figures), flush=True)
    print()
    names = ("hidden", "part", "updates", "pairs", "accelerator")
    sizes = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    schemes = ["--schemes", "ddp", "uncoded", "lwpd"]
    against_ddp.main(["--workers", str(RANKS), "--start", "rerun", *sizes, *schemes])


if __name__ == "__main__":
    main()
