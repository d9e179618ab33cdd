"""The paper's complexity table, measured: ``python -m experiments.bench.complexity [--quick]``.

What one update costs each scheme, over a sweep of n, k, t and the number P of parameters, and how it grows: exponents
fitted (least squares in logarithms) beside the O() of Soto et al. (ICML 2022). Where each figure comes from:

- encode and accumulate operations: counted while torch's kernels run (`BlockMap`, `ErrorFeedback`), one multiply-add
  for every element that an arithmetic operator reads, by a torch dispatch mode that knows every operator or fails.
  Encode is given beyond the one pass over the gradient that any scheme needs to fill its send buffer: P for a worker.
- solve operations: of the singular value decomposition behind the decoding weights of K codewords, 14 m q^2 + 8 q^3
  for an m x q matrix, m >= q (Golub & Van Loan, 4th ed., section 8.6). The growth is that of measured times, over codes
  of up to 512 workers (s = n/4), since at a few dozen workers the call costs more than its arithmetic.
- upload: the bytes of the messages that a worker sends, headers included, with float32 codewords (ternary for the
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
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from lwpd_lightning import Code, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding import BlockMap, kernels
from lwpd_lightning.coding.blocks import accumulate
from lwpd_lightning.coding.decoders import Decoder, block_coefficients, least_squares_coefficients
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.links.header import Header, Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.settings import ExchangeSettings

aten = torch.ops.aten

LEGEND = """\
Powers of 1.00 are not written. P parameters, n workers, k tasks, t tasks in a
codeword; K codewords are waited for, s = n - K. In the first table encode and
send are one worker's. The paper counts a gradient as k numbers where this
counts P, and takes s for a share of k = n: its O(k/t) is P/t here, its O(nk)
is P n s. Every scheme passes over the gradient once to fill its send buffer,
which is not counted; error feedback (sketch) adds each of its values to t
rows of the memory in that pass. Adding codewords up, the rest of decoding, is
the same for all: {added} multiply-adds."""
_LOOK: dict[str, Any] = {
    "title_justify": "left", "box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """A scheme of the table: how it is run, and what the paper says of it."""

    name: str
    variables: tuple[str, ...]  # that encode and upload are fitted in
    paper: tuple[str, str, str, str]  # encode, upload, decode, weight range
    weights: str  # that its construction takes
    decoder: Decoder = "projective"
    wire: str = "float32"
    feedback: bool = False


SCHEMES = [
    Scheme("lwpd", ("P", "n", "k", "t"), ("0", "O(k/t)", "0", "2..n/4"), "t | k"),
    Scheme("gradient_coding", ("P", "n", "s"), ("O(nk)", "O(k)", "O(k^w)", ""), "1..n", decoder="exact"),
    Scheme("k_async", ("P", "n"), ("0", "O(k)", "0", ""), "1"),
    Scheme("local", ("P", "n", "k", "t"), ("", "", "", ""), "2..n/A"),
    Scheme("sketch", ("P", "n", "t"), ("", "", "", ""), "any", wire="ternary", feedback=True),
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
        code, waits = self.code, self.wait_for
        sizes = {"n": code.n, "k": code.k, "t": code.t, "K": waits, "s": code.n - waits}
        return {**sizes, "P": _parameters(self.width)}[variable]


class Operations(TorchDispatchMode):
    """Counts multiply-adds: one for every element that an arithmetic operator reads, and those of matrix products."""

    _COUNTED: ClassVar[dict[Any, Callable[..., int]]] = {
        aten.add_.Tensor: lambda out, *_: out.numel(),
        aten.addmv_.default: lambda out, matrix, *_: matrix.numel(),
        aten.addmv.out: lambda self, matrix, *_: matrix.numel(),
        aten.addr_.default: lambda out, *_: out.numel(),
        aten.addmm_.default: lambda out, left, right, *_: left.shape[0] * right.numel(),
        aten.sub_.Tensor: lambda out, *_: out.numel(),
        aten.sum.default: lambda values, *_: values.numel(),
    }
    _FREE: ClassVar[set[Any]] = {
        aten.zeros.default, aten.empty.memory_format, aten.zero_.default, aten.copy_.default, aten._to_copy.default,
        aten.eye.default, aten.lift_fresh.default, aten.clone.default, aten._local_scalar_dense.default,
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

    def add_up() -> None:
        for row in rows:
            accumulate(flat, row, codeword)

    solves = scheme.decoder != "projective"
    tall, wide = max(wait_for, code.k), min(wait_for, code.k)
    return Cost(
        encode=encode - code.n * block_map.numel,
        encode_s=_seconds(_encoding(scheme, code, heaviest, block_map), rounds),
        upload=_message_bytes(scheme, block_map),
        solve=14 * tall * wide**2 + 8 * wide**3 if solves else 0,
        solve_s=_seconds(lambda: least_squares_coefficients(code, arrived), rounds) if solves else 0.0,
        accumulate=_operations(add_up),
        accumulate_s=_seconds(add_up, rounds),
    )


def exponents(cases: list[Case], variables: tuple[str, ...], quantity: Callable[[Cost], float]) -> str:
    """``quantity`` as a product of powers of the variables; those that do not move it are left out."""
    values = [quantity(case.cost) for case in cases]
    if not any(values):
        return "0"
    powers = _powers([[case.value(variable) for variable in variables] for case in cases], values)
    moved = [(v, f"{power:.2f}") for v, power in zip(variables, powers, strict=True) if abs(power) > 0.05]
    return " ".join(v if power == "1.00" else f"{v}^{power}" for v, power in moved)


def solve_growth(quick: bool) -> str:
    """How the time of a gradient code's solve grows with n, at s = n/4."""
    workers = [64, 128, 256] if quick else [64, 128, 256, 512]
    seconds = []
    for n in workers:
        code = gradient_code(n, n // 4)
        seconds.append(_seconds(lambda code=code, K=3 * n // 4: least_squares_coefficients(code, range(K)), rounds=5))
    return f"n^{_powers([[n] for n in workers], seconds)[0]:.2f}"


def _powers(sizes: list[list[int]], values: list[float]) -> list[float]:
    logs = np.column_stack((np.ones(len(sizes)), np.log(np.array(sizes, dtype=float))))
    solution, *_ = np.linalg.lstsq(logs, np.log(np.array(values)), rcond=None)
    return [float(power) for power in solution[1:]]


def _encoding(scheme: Scheme, code: Code, worker: int, block_map: BlockMap) -> Callable[[], None]:
    # What other formats add when they settle is the same.
    codeword, wire = block_map.codeword(), wire_format("float32")
    feedback = ErrorFeedback(code, worker, block_map) if scheme.feedback else None
    packed = wire.pack(codeword).clone()
    rows = {part: code.at(0).coefficients(worker)[part] for part in code.parts(worker)}

    def encode() -> None:
        for part, row in rows.items():
            if feedback is None:
                block_map.encode(row, codeword)
            else:
                feedback.add(part)
        if feedback is not None:
            feedback.codeword()
            feedback.settle(wire, packed)

    return encode


def _message_bytes(scheme: Scheme, block_map: BlockMap) -> int:
    payload = wire_format(scheme.wire).pack(block_map.codeword())
    touched = torch.ones(len(block_map.parameters), dtype=torch.uint8)
    messages = Messages(bytes(16), arena=None)
    frames = [
        *messages.pack(Header(Op.READY, bytes(16), 0), rest=touched),
        *messages.pack(Header(Op.SLICE, bytes(16), 0), payload),
    ]
    return sum(memoryview(frame).nbytes for frame in frames)


def _operations(act: Callable[[], object]) -> int:
    # Compiled kernels could not be counted; they make the same multiplications and additions.
    with patch.object(kernels, "compiled", lambda: None), torch.no_grad(), Operations() as counter:
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


def growth_table(cases: dict[str, list[Case]], solve: str) -> Table:
    """How each cost grows, beside the paper's O()."""
    table = Table(title="How it grows as fitted, and below it what the paper says", **_LOOK)
    table.add_column("scheme", no_wrap=True)
    for column in ("encode,\nall workers", "upload,\na worker", "solve,\ntime", "weight t", "async", "compr."):
        table.add_column(column, no_wrap=True)
    for scheme in SCHEMES:
        swept = cases[scheme.name]
        below = all(case.cost.upload < 0.9 * 4 * case.value("P") for case in swept)
        fits = [
            exponents(swept, scheme.variables, lambda cost: cost.encode),
            exponents(swept, scheme.variables, lambda cost: cost.upload),
            solve if scheme.decoder != "projective" else "0",
            scheme.weights,
        ]
        table.add_row(
            scheme.name,
            *(f"{fit}\n[dim]{said}[/dim]" for fit, said in zip(fits, scheme.paper, strict=True)),
            "yes" if _asynchronous(scheme, swept[0].code) else "no",
            "yes" if below else "no",
        )
    return table


def cost_table(cases: dict[str, list[Case]], width: int, workers: tuple[int, ...]) -> Table:
    """What one update costs, in figures, at one number of parameters and some numbers of workers."""
    parameters = _parameters(width)
    table = Table(title=f"One update at P = {parameters:,} parameters", **_LOOK)
    table.add_column("scheme", no_wrap=True)
    for column in ("n", "k", "t", "K", "encode\nP", "\nms", "send\nkB", "\n/4P", "solve\nMflop", "\nms", "add\nms"):
        table.add_column(column, justify="right", no_wrap=True)
    for scheme in SCHEMES:
        shown = [case for case in cases[scheme.name] if case.width == width and case.code.n in workers]
        for case in shown:
            cost, code = case.cost, case.code
            table.add_row(
                scheme.name,
                *map(str, (code.n, code.k, code.t, case.wait_for)),
                f"{cost.encode / parameters / code.n:.2f}",
                f"{1e3 * cost.encode_s:.2f}",
                f"{cost.upload / 1e3:.0f}",
                f"{cost.upload / parameters / 4:.0%}",
                f"{cost.solve / 1e6:.2f}" if cost.solve else "0",
                f"{1e3 * cost.solve_s:.2f}" if cost.solve else "0",
                f"{1e3 * cost.accumulate_s:.1f}",
                end_section=case is shown[-1],
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
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    console = Console()
    widths = [64, 128] if quick else [128, 256, 512]
    points = [(s, size, width) for s in SCHEMES for size, width in itertools.product(sizes(s, quick), widths)]
    cases: dict[str, list[Case]] = {scheme.name: [] for scheme in SCHEMES}
    for scheme, (code, wait_for), width in track(points, "Measuring", console=console, transient=True):
        cost = measure(scheme, code, wait_for, width, rounds=3 if quick else 15)
        cases[scheme.name].append(Case(scheme, code, wait_for, width, cost))
    console.print(cost_table(cases, widths[-1], workers=(8, 32)))
    console.print()
    console.print(growth_table(cases, solve_growth(quick)))
    console.print()
    added = exponents(list(itertools.chain(*cases.values())), ("P", "K"), lambda cost: cost.accumulate)
    console.print(LEGEND.format(added=added), highlight=False)


if __name__ == "__main__":
    main()
