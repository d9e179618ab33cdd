"""The optimizer's own metric: how large it takes each value of the gradient to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.addresses import addresses
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.unit import Tables, Unit, UnitInPlace, over_chunks
from lwpd_lightning.coding.wire import CHUNK

# Of the chunk's mean square: what a value is taken to be at least, as one that hardly ever gets a gradient.
_FLOOR = 0.1
_SMALLEST = 1e-30  # mean square that float32 can be divided by the root of
_NOTHING = torch.empty(0, device="cpu")


class Metric:
    """D, a (B, d) matrix in the layout of the blocks: what each value of a gradient is divided by before it travels.

    An optimizer that divides by the root of its second moments takes all values to be alike after that, and bears noise
    that is alike in all of them; noise that is alike in the gradient itself shrinks its steps where gradients are
    small. So D is that root, of the optimizer's own state, which rank 0 has too: nothing of it is kept anywhere else.

    | state, by its key | optimizers | D^2 |
    |---|---|---|
    | `max_exp_avg_sq`, else `exp_avg_sq` | Adam, AdamW, NAdam, RAdam, with or without amsgrad | it / (1 - beta2^step) |
    | `square_avg` | RMSprop, Adadelta | it / (1 - alpha^step), or rho |
    | `sum` | Adagrad | it / step |
    | `exp_inf` | Adamax | its square |
    | `row_var` and `col_var`, else `variance` | Adafactor | the matrix of rank one that it divides by |
    | anything else | SGD, with momentum or not; Lion, Muon | 1 |

    Why 1: a step of SGD's is the gradient itself, so that it bears noise in all values alike; Lion takes signs of an
    average and Muon makes a matrix orthogonal, neither of which holds how large single values are.

    To D^2 a tenth of its mean over the chunk of 1024 columns is added, so that what hardly ever gets a gradient, as
    an embedding's row, is not blown up when it does. Parameters without such state, beside others that have it, are
    taken to be the mean of their chunk, or where no other is in it of all chunks. Before any has it D is 1.

    Computed of single additions, products and roots alone, in one order: the same bits wherever the state's are.

    Args:
        blocks: layout of the trainable parameters.
        optimizer: of the parameters; None: D is 1.
    """

    def __init__(self, blocks: BlockMap, optimizer: torch.optim.Optimizer | None) -> None:
        self._blocks, self._optimizer = blocks, optimizer
        self._places = {p: (position, p.shape) for position, p in enumerate(blocks.parameters)}
        self._version: int | None = None
        self._known: list[int] | None = None  # parameters with state, when they were counted
        self._counts = torch.empty(0)
        self._unit: Unit | UnitInPlace | None = None  # None: all are 1
        self._buffer: Tensor | None = None

    def at(self, version: int) -> Unit | UnitInPlace | None:
        """D of the version that the model is at, in the layout's dtype and on its device; None: all are 1.

        The same until it is asked for another version or told to `forget`. Where it is a `UnitInPlace` it is of use
        only until the optimizer makes its step, which ends the version.
        """
        if self._version != version:
            self._version, self._unit = version, self._compute()
        return self._unit

    def forget(self) -> None:
        """The optimizer's state is another one."""
        self._version = None

    @torch.no_grad()
    def _compute(self) -> Unit | UnitInPlace | None:
        found, blocks = dict(self._squares()), self._blocks
        if not found:
            return None
        known = sorted(found)
        if known != self._known:
            self._known, self._counts = known, self._counted(known).to(blocks.device, blocks.dtype)
        fast = kernels.compiled_for(self._counts)
        return self._laid_out(found) if fast is None else self._in_place(found, fast)

    def _laid_out(self, found: Mapping[int, tuple[Tensor, float]]) -> Unit:
        blocks = self._blocks
        if self._buffer is None:
            self._buffer = blocks.zeros()
        squares, everywhere = self._buffer, range(len(blocks.parameters))
        for position in everywhere:
            blocks.lay_out(position, *found.get(position, (_NOTHING, 1.0)), out=squares)
        means = self._means(_chunk_sums(squares))
        unknown = [position for position in everywhere if position not in found]
        if unknown:
            spread = over_chunks(means, blocks.block_size)
            for position in unknown:
                blocks.columns(squares, position).copy_(blocks.columns(spread, position))
        return Unit(squares, means * _FLOOR)

    def _in_place(self, found: Mapping[int, tuple[Tensor, float]], fast: ModuleType) -> UnitInPlace:
        """The same by the compiled kernels."""
        pairs = [found.get(position, (None, 1.0)) for position in range(len(self._blocks.parameters))]
        values, copies = addresses(values for values, _ in pairs)
        factors, layout = np.array([factor for _, factor in pairs], np.float32), self._blocks.layout
        sums, means = np.empty((2, *self._counts.shape), np.float32)
        fast.chunk_sums(values, factors, layout, CHUNK, sums)
        fast.chunk_means(sums, self._counts.numpy(), _SMALLEST, 1 / _FLOOR, means)
        held = [*copies, *(values for values, _ in found.values())]
        return UnitInPlace(Tables(values, factors, layout, means, means * np.float32(_FLOOR)), held, fast)

    def _counted(self, known: Iterable[int]) -> Tensor:
        """How many values of each chunk have state; (B, ceil(d/1024))."""
        blocks = self._blocks
        counts = torch.zeros(blocks.blocks, -(-blocks.block_size // CHUNK))
        for position in known:
            first, width, left = blocks.layout[position].tolist()
            for b in range(blocks.blocks):
                stop = first + max(0, min(width, left - b * width))
                chunks = slice(first // CHUNK, -(-stop // CHUNK))
                starts = torch.arange(chunks.start, chunks.stop) * CHUNK
                counts[b, chunks] += (starts + CHUNK).clamp(max=stop) - starts.clamp(min=first)
        return counts

    def _means(self, sums: Tensor) -> Tensor:
        """Of each row's chunks, over the values that are known; (B, ceil(d/1024))."""
        overall = _total(sums.flatten()) / _total(self._counts.flatten())
        means = torch.where(self._counts > 0, sums / self._counts.clamp(min=1), overall)
        # A chunk of zeros: D is 1 there.
        return torch.where(means > 0, means.clamp(min=_SMALLEST), 1 / _FLOOR)

    def _squares(self) -> Iterator[tuple[int, tuple[Tensor, float]]]:
        """Of each parameter with state, by position: the mean squares in its shape, and what they are to be times."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                position, shape = self._places.get(parameter, (-1, None))
                state = self._optimizer.state.get(parameter)
                if state and (values := _square(state)) is not None and values.shape == shape:
                    yield position, (values, _correction(state, group))


def _square(state: Mapping[str, Any]) -> Tensor | None:
    for key in ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum", "variance"):
        if key in state and isinstance(values := state[key], Tensor):
            return values
    if isinstance(largest := state.get("exp_inf"), Tensor):
        return largest * largest
    rows, columns = state.get("row_var"), state.get("col_var")
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):
        # (..., R, 1) and (..., 1, C), divided by the rows' mean (Shazeer & Stern, ICML 2018, algorithm 4).
        mean = _total(rows.movedim(-2, 0)) / rows.shape[-2]
        return rows * columns / torch.where(mean > 0, mean, torch.ones_like(mean))[..., None, :]
    return None


def _correction(state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """For how few steps the average is of: parameters of one chunk may have made different numbers of steps."""
    step = float(state.get("step", 0))
    if step < 1:
        return 1.0
    if "sum" in state:
        return 1 / step
    if "exp_avg_sq" in state and "betas" in group:
        decay = float(group["betas"][1])
    elif "square_avg" in state:
        decay = float(group.get("alpha", group.get("rho", 0.0)))
    else:
        return 1.0
    return 1 / (1 - decay**step) if decay < 1 else 1.0


def _chunk_sums(rows: Tensor) -> Tensor:
    """(B, d) -> (B, ceil(d/1024)), each chunk's sum."""
    whole, rest = divmod(rows.shape[1], CHUNK)
    chunks = rows[:, : whole * CHUNK].reshape(len(rows), whole, CHUNK)
    some = [_total(chunks.movedim(-1, 0))] if whole else []
    if rest:
        some.append(_total(rows[:, whole * CHUNK :].movedim(-1, 0))[:, None])
    return torch.cat(some, dim=1)


def _total(values: Tensor) -> Tensor:
    """The sum over the first dimension by halves: torch's own sums depend on the device and its number of threads."""
    while len(values) > 1:
        half = len(values) // 2
        summed = values[:half] + values[half : 2 * half]
        values = torch.cat((summed, values[2 * half :])) if len(values) % 2 else summed
    return values[0]
