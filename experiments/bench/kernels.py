"""What encode and accumulate cost beside plain additions: ``python -m experiments.bench.kernels``.

A worker's codeword takes t*d multiply-adds to encode and as many to accumulate. Both are timed against ``a.add_(b)``
over that many float32 values, round by round so that all see the same machine, and printed as ratios of medians.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.decoders import block_coefficients
from lwpd_lightning.coding.families import lwpd_code

ROUNDS = 25
MLP = [(2048, 784), (2048,), (2048, 2048), (2048,), (2048, 2048), (2048,), (10, 2048), (10,)]
_WIDTH = 320
_LAYER = [
    *((_WIDTH,), (_WIDTH,), (3 * _WIDTH, _WIDTH), (3 * _WIDTH,), (_WIDTH, _WIDTH), (_WIDTH,)),
    *((_WIDTH,), (_WIDTH,), (4 * _WIDTH, _WIDTH), (4 * _WIDTH,), (_WIDTH, 4 * _WIDTH), (_WIDTH,)),
]
TRANSFORMER = [(256, _WIDTH), (256, _WIDTH), *_LAYER * 8, (_WIDTH,), (_WIDTH,)]


def ratios(shapes: list[tuple[int, ...]], code: Code, worker: int) -> dict[str, float]:
    """Times of one worker's kernels as multiples of the baseline's, which is in milliseconds under "adds"."""
    parameters = [Parameter(torch.zeros(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    block_map = BlockMap(parameters, code.blocks)
    rows = [code.coefficients(worker)[part] for part in code.parts(worker)]
    entry = block_coefficients(code, worker)
    codeword, flat = block_map.codeword(), block_map.zeros()
    narrow = torch.randn_like(codeword).bfloat16()
    total, addend = torch.zeros(code.t * block_map.block_size), torch.randn(code.t * block_map.block_size)

    def encode() -> None:
        for row in rows:
            block_map.encode(row, codeword)

    kernels: dict[str, Callable[[], object]] = {
        "adds": lambda: total.add_(addend),
        "encode": encode,
        "accumulate": lambda: accumulate(flat, entry, codeword),
        "accumulate bf16": lambda: accumulate(flat, entry, narrow),
    }
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, kernel in kernels.items():
            start = time.perf_counter()
            kernel()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    adds = medians.pop("adds")
    return {
        "adds": 1e3 * adds,
        **{name: seconds / adds for name, seconds in medians.items()},
        "both": (medians["encode"] + medians["accumulate"]) / (2 * adds),
    }


def main() -> None:
    """Print the table: "both" is encode and float32 accumulate together against as many additions."""
    columns = ["encode", "accumulate", "accumulate bf16", "both"]
    print(f"{'model':12} {'code':>14} {'worker':>6} {'parts':>5} {'threads':>7} {'adds':>8}", *columns, sep="  ")
    for model, shapes in (("mlp", MLP), ("transformer", TRANSFORMER)):
        for code in (lwpd_code(8, 4, 2), lwpd_code(16, 8, 4)):
            for worker in (0, code.n - 1):  # of the first class: one data part; of the last: several
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    row = ratios(shapes, code, worker)
                    name = f"lwpd({code.n},{code.k},{code.t})"
                    parts = len(code.parts(worker))
                    print(
                        f"{model:12} {name:>14} {worker:6} {parts:5} {threads:7} {row['adds']:5.2f} ms",
                        *(f"{row[column]:{len(column)}.2f}" for column in columns),
                        sep="  ",
                    )


if __name__ == "__main__":
    main()
