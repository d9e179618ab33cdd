"""The paper's complexity table, measured: ``python -m experiments.bench.complexity [--quick]``.

What one update costs each scheme, for a sweep over n, k, t and the number P of parameters, and how it grows: exponents
fitted (least squares in logarithms) beside the O() of Soto et al. (ICML 2022). Where each figure comes from:

- encode and accumulate operations: counted while the real kernels run (`BlockMap`, `ErrorFeedback`), one multiply-add
  for every element that an add, addmv or addr reads, by a torch dispatch mode that knows every operator or fails. Encode
  is given beyond the one pass over the gradient that any scheme needs to put it into its send buffer: P for a worker.
- solve operations: of the K x n singular value decomposition behind the decoding weights, 14 m n^2 + 8 n^3 for m >= n
  (Golub & Van Loan, 4th ed., section 8.6); its growth is fitted to measured times, since LAPACK does not count.
- upload: the bytes of the message that a worker sends, header included, float32 codewords on the wire (int8 for the
  sketch, which is run so).
- asynchronous: whether the settings accept stale="apply"; compression: whether an upload is below a whole gradient's.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from lwpd_lightning import Code, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding import BlockMap
from lwpd_lightning.coding.decoders import Decoder, block_coefficients, least_squares_coefficients
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.header import Header, Op
from lwpd_lightning.exchange.message import Messages
from lwpd_lightning.settings import ExchangeSettings

aten = torch.ops.aten


@dataclass(frozen=True)
class Scheme:
    """A scheme of the table: how it is run, what it is fitted in, and what the paper says of it."""

    name: str
    variables: tuple[str, ...]
    paper: tuple[str, str, str]  # encode, upload, decode
    decoder: Decoder = "projective"
    wire: str = "float32"
    feedback: bool = False


SCHEMES = [
    Scheme("lwpd", ("P", "n", "k", "t"), ("0", "O(k/t)", "0")),
    Scheme("gradient_coding", ("P", "n", "s"), ("O(nk)", "O(k)", "O(k^w)"), decoder="exact"),
    Scheme("k_async", ("P", "n"), ("0", "O(k)", "0")),
    Scheme("local", ("P", "n", "k", "t"), ("-", "-", "-")),
    Scheme("sketch", ("P", "n", "t"), ("-", "-", "-"), wire="int8", feedback=True),
]


@dataclass(frozen=True)
class Cost:
    """What one update costs: operations of all workers together, times in seconds, bytes of one upload."""

    encode: int
    encode_s: float
    upload: int
    solve: int
    solve_s: float
    accumulate: int
    accumulate_s: float


@dataclass(frozen=True)
class Case:
    """One point of the sweep."""

    scheme: Scheme
    code: Code
    wait_for: int
    width: int
    cost: Cost

    def value(self, variable: str) -> int:
        """The size that a fit's variable stands for."""
        sizes = {"P": _parameters(self.width), "n": self.code.n, "k": self.code.k, "t": self.code.t}
        return {**sizes, "s": self.code.n - self.wait_for}[variable]


class Operations(TorchDispatchMode):
    """Counts multiply-adds, one for every element that an arithmetic operator reads."""

    _COUNTED: dict[Any, Callable[..., int]] = {
        aten.add_.Tensor: lambda out, *_: out.numel(),
        aten.addmv_.default: lambda out, matrix, *_: matrix.numel(),
        aten.addmv.out: lambda self, matrix, *_: matrix.numel(),
        aten.mv.out: lambda matrix, *_: matrix.numel(),
        aten.addr_.default: lambda out, *_: out.numel(),
        aten.nan_to_num_.default: lambda out, *_: out.numel(),
    }
    _FREE = {
        aten.zeros.default, aten.empty.memory_format, aten.zero_.default, aten.copy_.default, aten._to_copy.default,
        aten.eye.default, aten.lift_fresh.default, aten.clone.default,
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        if func in self._COUNTED:
            self.total += self._COUNTED[func](*args)
        elif func not in self._FREE and not func.is_view:
            raise RuntimeError(f"{func} is neither counted nor known to be free")
        return func(*args, **(kwargs or {}))


def sizes(scheme: Scheme, quick: bool) -> list[tuple[Code, int]]:
    """The codes of the sweep, each with the number of codewords that its decoder waits for."""
    workers = [8, 16, 32] if quick else [8, 16, 32, 64]
    weights = [2, 4] if quick else [2, 4, 8]
    if scheme.name == "lwpd":
        sizes = [(n, k, t) for n in workers for k in (n // 2, n // 4) for t in weights if k % t == 0 and t < k]
        return [(lwpd_code(*size), 3 * size[0] // 4) for size in sizes]
    if scheme.name == "local":
        sizes = [(n, k, t) for n in workers for k in (n, n // 2) for t in weights if k % t == 0 and t < k]
        return [(local_code(n, data_parts=k // t, blocks=t), 3 * n // 4) for n, k, t in sizes]
    if scheme.name == "gradient_coding":
        return [(gradient_code(n, s), n - s) for n in workers for s in (1, 2, 4, 8) if s <= n // 4]
    if scheme.name == "sketch":
        return [(local_code(n, data_parts=n, blocks=t), 3 * n // 4) for n in workers for t in weights]
    return [(uncoded(n), 3 * n // 4) for n in workers]


def measure(scheme: Scheme, code: Code, wait_for: int, width: int, rounds: int) -> Cost:
    """One update of a model of `_parameters(width)` parameters."""
    block_map = _model(width, code.blocks)
    arrived = torch.randperm(code.n, generator=torch.Generator().manual_seed(code.n))[:wait_for].tolist()
    encode = sum(_operations(_encoding(scheme, code, worker, block_map)) for worker in range(code.n))
    heaviest = max(range(code.n), key=lambda worker: len(code.tasks(worker)))
    codeword, flat = torch.randn(block_map.block_size), block_map.zeros()
    rows = [block_coefficients(code.at(0), worker) for worker in arrived]

    def accumulate() -> None:
        for row in rows:
            block_map.accumulate(flat, row, codeword)

    solves = scheme.decoder != "projective"
    tall, wide = max(wait_for, code.k), min(wait_for, code.k)
    return Cost(
        encode=encode - code.n * block_map.numel,
        encode_s=_seconds(_encoding(scheme, code, heaviest, block_map), rounds),
        upload=_message_bytes(scheme, block_map),
        solve=14 * tall * wide**2 + 8 * wide**3 if solves else 0,
        solve_s=_seconds(lambda: least_squares_coefficients(code, arrived), rounds) if solves else 0.0,
        accumulate=_operations(accumulate),
        accumulate_s=_seconds(accumulate, rounds),
    )


def exponents(cases: list[Case], quantity: Callable[[Cost], float]) -> str:
    """``quantity`` as a product of powers of the scheme's variables; those that do not move it are left out."""
    values = [quantity(case.cost) for case in cases]
    if not any(values):
        return "0"
    variables = cases[0].scheme.variables
    logs = [[1.0, *(math.log(case.value(variable)) for variable in variables)] for case in cases]
    (_, *powers), *_ = np.linalg.lstsq(np.array(logs), np.log(np.array(values)), rcond=None)
    factors = [
        f"{variable}^{power:.2f}" for variable, power in zip(variables, powers, strict=True) if abs(power) > 0.05
    ]
    return " ".join(factors)


def _encoding(scheme: Scheme, code: Code, worker: int, block_map: BlockMap) -> Callable[[], None]:
    codeword, wire = block_map.codeword(), wire_format(scheme.wire)
    feedback = ErrorFeedback(code, worker, block_map) if scheme.feedback else None
    sent = wire.unpack(wire.pack(codeword), block_map.block_size)
    rows = {part: code.at(0).coefficients(worker)[part] for part in code.parts(worker)}

    def encode() -> None:
        for part, row in rows.items():
            if feedback is None:
                block_map.encode(row, codeword)
            else:
                feedback.add(part)
        if feedback is not None:
            feedback.codeword(0, codeword)
            feedback.settle(sent)

    return encode


def _message_bytes(scheme: Scheme, block_map: BlockMap) -> int:
    payload = wire_format(scheme.wire).pack(block_map.codeword())
    touched = torch.ones(len(block_map.parameters), dtype=torch.uint8)
    frames = Messages(bytes(16), arena=None).pack(Header(Op.CODEWORD, bytes(16), 0), payload, touched)
    return sum(memoryview(frame).nbytes for frame in frames)


def _operations(act: Callable[[], object]) -> int:
    with torch.no_grad(), Operations() as counter:
        act()
    return counter.total


def _seconds(act: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _shapes(width: int) -> list[tuple[int, ...]]:
    return [(width, width), (width,), (width, width), (width,)]


def _parameters(width: int) -> int:
    return sum(math.prod(shape) for shape in _shapes(width))


def _model(width: int, blocks: int) -> BlockMap:
    parameters = [Parameter(torch.zeros(shape)) for shape in _shapes(width)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return BlockMap(parameters, blocks)


def growth_table(cases: dict[str, list[Case]]) -> Table:
    """How each cost grows, beside the paper's O()."""
    table = Table(title="How it grows: fitted exponents, and the paper's O() in italics", title_justify="left")
    for column in ("scheme", "encode, all workers", "upload, a worker", "solve (time)", "accumulate"):
        table.add_column(column)
    for column in ("weight t", "asynchronous", "compression"):
        table.add_column(column, justify="center")
    for scheme in SCHEMES:
        swept = cases[scheme.name]
        fits = [exponents(swept, q) for q in (lambda c: c.encode, lambda c: c.upload, lambda c: c.solve_s)]
        weights = sorted({case.code.t for case in swept})
        whole = [4 * case.value("P") for case in swept]
        below = all(case.cost.upload < 0.9 * bytes_ for case, bytes_ in zip(swept, whole, strict=True))
        table.add_row(
            scheme.name,
            *(f"{fit}\n[italic]{said}[/italic]" for fit, said in zip(fits, scheme.paper, strict=True)),
            exponents(swept, lambda c: c.accumulate),
            f"{weights[0]}..{weights[-1]}" if len(weights) > 1 else str(weights[0]),
            "yes" if _asynchronous(scheme, swept[0].code) else "no",
            "yes" if below else "no",
            end_section=True,
        )
    return table


def cost_table(cases: dict[str, list[Case]], width: int) -> Table:
    """What one update costs, in figures, for the sweep's sizes at one number of parameters."""
    parameters = _parameters(width)
    table = Table(title=f"One update at P = {parameters:,} parameters", title_justify="left")
    table.add_column("scheme")
    for column in ("n", "k", "t", "K"):
        table.add_column(column, justify="right")
    for column in ("encode\nP/worker", "encode\nms/worker", "upload\nkB", "upload\nof 4P", "solve\nMflop", "solve\nms"):
        table.add_column(column, justify="right")
    for column in ("accumulate\nP", "accumulate\nms"):
        table.add_column(column, justify="right")
    for scheme in SCHEMES:
        shown = [case for case in cases[scheme.name] if case.width == width]
        for last, case in ((case is shown[-1], case) for case in shown):
            cost, code = case.cost, case.code
            table.add_row(
                scheme.name,
                *map(str, (code.n, code.k, code.t, case.wait_for)),
                f"{cost.encode / parameters / code.n:.2f}",
                f"{1e3 * cost.encode_s:.2f}",
                f"{cost.upload / 1e3:.1f}",
                f"{cost.upload / parameters / 4:.1%}",
                f"{cost.solve / 1e6:.3f}" if cost.solve else "0",
                f"{1e3 * cost.solve_s:.2f}" if cost.solve else "0",
                f"{cost.accumulate / parameters:.1f}",
                f"{1e3 * cost.accumulate_s:.2f}",
                end_section=last,
            )
    return table


def _asynchronous(scheme: Scheme, code: Code) -> bool:
    try:
        ExchangeSettings(code=code, decoder=scheme.decoder, stale="apply")
    except ValueError:
        return False
    return True


def main() -> None:
    """Sweep, fit and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: about ten seconds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    console = Console()
    widths = [64, 128] if quick else [128, 256, 512]
    points = [(s, size, width) for s in SCHEMES for size, width in itertools.product(sizes(s, quick), widths)]
    cases: dict[str, list[Case]] = {scheme.name: [] for scheme in SCHEMES}
    for scheme, (code, wait_for), width in track(points, "Measuring", console=console, transient=True):
        cost = measure(scheme, code, wait_for, width, rounds=3 if quick else 15)
        cases[scheme.name].append(Case(scheme, code, wait_for, width, cost))
    console.print(cost_table(cases, widths[-1]))
    console.print(growth_table(cases))
    console.print(
        "P parameters, n workers, k tasks, t tasks in a codeword, K codewords waited for, s = n - K stragglers. The paper "
        "counts a gradient as k numbers where we count P, and s < k = n: its O(k/t) is P/t here, its O(nk) is P n s.\n"
        "Encode is beyond the one pass over the gradient that every scheme makes; with error feedback (sketch) the memory "
        "is read three times more. Accumulating K codewords is the same work for all: P K."
    )


if __name__ == "__main__":
    main()
