"""Where each parameter lies among the blocks, and the kernels that move gradients: encode, accumulate and scatter."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.addresses import addresses
from lwpd_lightning.coding.unit import Unit, UnitInPlace
from lwpd_lightning.coding.wire import CHUNK


class BlockMap:
    """The trainable parameters as a (B, d) matrix: row b is block b.

    Every parameter is flattened in logical order and padded with zeros to B chunks of ``c = ceil(numel / B)``; chunk b
    belongs to block b and lies at columns [offset, offset + c). For a weight of shape (out, in) with B | out the
    chunks are groups of output nodes (the block partition of Soto et al., ICML 2022). All blocks have the same layout,
    so a codeword mixes like with like.

    Frozen parameters are left out; a parameter that occurs more than once (tied) counts once, in its first place.

    Args:
        parameters: of a module, in an order that all workers share.
        blocks: B.

    Attributes:
        parameters: the trainable parameters, in order.
        blocks: B.
        widths: columns of each parameter in the (B, d) view, padding included.
        layout: (n, 3) int64, of each parameter: its first column, how many it has, and how many values.
        block_size: d, the sum of all widths.
        numel: P, the number of trainable values, padding not included.
        dtype: of the (B, d) buffer and of codewords: float64 where a parameter is, else float32.
        device: of all parameters.

    Raises:
        ValueError: where blocks < 1, no parameter is trainable, or parameters are complex or on several devices.

    >>> layer = torch.nn.Linear(3, 2)
    >>> block_map = BlockMap(layer.parameters(), blocks=2)
    >>> block_map.numel, block_map.block_size
    (8, 4)
    >>> layer(torch.tensor([1.0, 2.0, 3.0])).backward(torch.tensor([1.0, 10.0]))
    >>> codeword = block_map.codeword()
    >>> block_map.encode([1.0, 0.5], codeword)
    >>> codeword
    tensor([ 6., 12., 18.,  6.])
    """

    def __init__(self, parameters: Iterable[Parameter], blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"blocks={blocks}: use at least 1.")
        self.parameters = tuple({id(p): p for p in parameters if p.requires_grad}.values())
        if not self.parameters:
            raise ValueError("parameters has no entry with requires_grad=True: give at least one trainable parameter.")
        devices = {p.device for p in self.parameters}
        if len(devices) > 1:
            raise ValueError(f"parameters are on {sorted(map(str, devices))}: put all of them on one device.")
        if any(p.is_complex() for p in self.parameters):
            raise ValueError("parameters has a complex entry: use real parameters, such as torch.view_as_real gives.")
        self.blocks = blocks
        self.numel = sum(p.numel() for p in self.parameters)
        self.widths = [-(-p.numel() // blocks) for p in self.parameters]
        self.block_size = sum(self.widths)
        widths, counts = np.array([self.widths, [p.numel() for p in self.parameters]], np.int64)
        self.layout = np.stack((np.cumsum(widths) - widths, widths, counts), axis=1)
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        self.device = self.parameters[0].device

    def zeros(self) -> Tensor:
        """A (B, d) buffer of zeros to accumulate codewords in."""
        return torch.zeros(self.blocks, self.block_size, dtype=self.dtype, device=self.device)

    def codeword(self) -> Tensor:
        """A (d,) buffer of zeros to encode into."""
        return torch.zeros(self.block_size, dtype=self.dtype, device=self.device)

    def touched(self) -> list[bool]:
        """Which parameters have a gradient now."""
        return [p.grad is not None for p in self.parameters]

    @torch.no_grad()
    def encode(
        self,
        coefficients: Sequence[float] | Tensor,
        out: Tensor,
        unit: Unit | UnitInPlace | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """Add ``sum_b coefficients[b] * block b`` of the current gradients to a codeword.

        One data part's share of a worker's codeword: call it after each part's backward pass with that part's row of
        `Code.coefficients`, clearing the gradients in between. Reads straight from the ``grad`` fields; a parameter
        without a gradient adds nothing, and a block whose coefficient is zero is not read.

        Args:
            coefficients: B numbers.
            out: (d,) codeword, changed in place.
            unit: of (B, d), which each block's values are divided by first; None: by nothing.
            fresh: begin the codeword: what it held does not count.

        Raises:
            ValueError: for a wrong number of coefficients, a codeword of another shape or a sparse gradient.
        """
        weights = self._checked(coefficients)
        self._check_shape(out, (self.block_size,))
        nonzero = [b for b, w in enumerate(weights) if w != 0]
        if fresh and not (nonzero and all(self.touched())):
            out.zero_()
            fresh = False
        if unit is not None:
            self._check_shape(unit, (self.blocks, self.block_size))
            self._encode_in_units(weights, nonzero, out, unit, fresh)
            return
        # Profiled: with every block wanted, one BLAS call a parameter moves less memory and costs fewer dispatches.
        dense = torch.tensor(weights, dtype=out.dtype, device=out.device) if len(nonzero) == self.blocks > 1 else None
        for grad, chunk, first in self._gradients():
            part = out[first : first + chunk]
            if dense is not None and grad.dtype == out.dtype and grad.numel() == self.blocks * chunk:
                part.addmv_(grad.view(self.blocks, chunk).T, dense, beta=0 if fresh else 1)
                continue
            for b in nonzero:
                piece = grad[b * chunk : (b + 1) * chunk]
                column = part if piece.numel() == chunk else part[: piece.numel()]  # each slice costs a dispatch
                if fresh and b == nonzero[0]:
                    column.copy_(piece)
                    part[piece.numel() :] = 0
                    if weights[b] != 1:
                        column.mul_(weights[b])
                else:
                    column.add_(piece, alpha=weights[b])

    def _encode_in_units(
        self, weights: list[float], nonzero: list[int], out: Tensor, unit: Unit | UnitInPlace, fresh: bool
    ) -> None:
        if isinstance(unit, UnitInPlace) and (fast := kernels.compiled_for(out)) is not None:
            grads, _copies = addresses(self._dense_gradients())
            fast.encode(grads, np.array(weights, np.float32), *unit.tables, CHUNK, out.numpy(), fresh)
            return
        if fresh:
            out.zero_()
        roots = unit.roots()
        for grad, chunk, first in self._gradients():
            for b in nonzero:
                piece = grad[b * chunk : (b + 1) * chunk]
                columns = slice(first, first + piece.numel())
                out[columns].addcdiv_(piece.to(out.dtype), roots[b, columns], value=weights[b])

    def columns(self, matrix: Tensor, position: int) -> Tensor:
        """The columns of a (m, d) matrix that belong to the parameter at a position: (m, c), a view."""
        return matrix.narrow(1, sum(self.widths[:position]), self.widths[position])

    @torch.no_grad()
    def lay_out(self, position: int, values: Tensor, factor: float = 1.0, *, out: Tensor) -> None:
        """Write ``factor`` times values, of the shape of the parameter at a position, to where it lies in a (B, d).

        The padding behind it is set to zeros.
        """
        part, chunk, flat = self.columns(out, position), self.widths[position], values.reshape(-1)
        for b in range(self.blocks):
            piece = flat[b * chunk : (b + 1) * chunk].to(out)
            torch.mul(piece, factor, out=part[b, : piece.numel()])
            if piece.numel() < chunk:
                part[b, piece.numel() :] = 0

    @torch.no_grad()
    def scatter(
        self,
        decoded: Tensor,
        touched: Sequence[bool] | None,
        direction: Sequence[float] | None = None,
        *,
        views: bool = False,
    ) -> None:
        """Set every parameter's ``grad`` to its part of a decoded gradient.

        Args:
            decoded: (B, d), row b being block b's gradient; or, with a direction h, (1, d), for ``h (x) decoded[0]``,
                which is what the codewords of workers that share one row show of the gradient.
            touched: one entry a parameter; where False, ``grad`` becomes None, as if no backward pass had reached it.
                None: all are set.
            direction: B numbers.
            views: ``decoded`` is for nobody else: where it is the gradient as it stands, it is not copied.

        Raises:
            ValueError: for a buffer of another shape, or a wrong number of entries in ``touched`` or ``direction``.
        """
        self._check_shape(decoded, (self.blocks if direction is None else 1, self.block_size))
        if touched is not None and len(touched) != len(self.parameters):
            raise ValueError(f"touched has {len(touched)} entries: give one for each of {len(self.parameters)} params.")
        along = None if direction is None else self._checked(direction)
        views = views and self.blocks == 1 and along is None
        for i, (p, part) in enumerate(zip(self.parameters, torch.split(decoded, self.widths, dim=1), strict=True)):
            if touched is not None and not touched[i]:
                p.grad = None
                continue
            if views and p.dtype == part.dtype and p.is_contiguous():
                p.grad = part.view_as(p)  # a third of the time of view(p.shape)
                continue
            if p.grad is None or p.grad.shape != p.shape or p.grad.layout != torch.strided:
                p.grad = torch.empty_like(p)
            contiguous = p.grad.is_contiguous()
            flat = (p.grad if contiguous else torch.empty_like(p, memory_format=torch.contiguous_format)).view(-1)
            if along is not None and (fast := kernels.compiled_for(flat, part[0])) is not None:
                fast.spread(part[0].numpy(), np.array(along, np.float32), flat.numpy())
            else:
                for b, block in enumerate(torch.split(flat, part.shape[1]) if p.numel() else ()):
                    if along is None:
                        block.copy_(part[b, : block.numel()])
                    else:  # row by row: a broadcast product takes twice as long
                        torch.mul(part[0, : block.numel()], along[b], out=block)
            if not contiguous:
                p.grad.copy_(flat.view(p.shape))

    @torch.no_grad()
    def gather(self) -> Tensor:
        """The current gradients as a (B, d) matrix, zeros where there is none: the dense reference of `encode`."""
        flat = self.zeros()
        for grad, chunk, first in self._gradients():
            for b, block in enumerate(torch.split(grad, chunk)):
                flat[b, first : first + block.numel()] = block
        return flat

    @torch.no_grad()
    def add_along(self, rows: Tensor, into: Tensor) -> None:
        """``into += rows @ G``, where G is the current gradients' (B, d) matrix, in one pass over them.

        Args:
            rows: (m, B), of the map's dtype and on its device.
            into: (m, d), changed in place.

        Raises:
            ValueError: for a buffer of another shape, or a sparse gradient.
        """
        self._check_shape(rows, (len(into), self.blocks))
        self._check_shape(into, (len(into), self.block_size))
        fast = kernels.compiled_for(rows, into)
        for grad, chunk, first in self._gradients():
            grad = grad.to(into.dtype)
            if fast is not None:
                fast.add_along(rows.numpy(), grad.numpy(), chunk, into.numpy(), first)
                continue
            part = into[:, first : first + chunk]
            full, rest = divmod(grad.numel(), chunk)
            # A last block may be shorter: its columns have one block more than the others.
            for start, stop, count in ((0, rest, full + 1), (rest, chunk, full)):
                if start < stop:
                    some = grad.as_strided((count, stop - start), (chunk, 1), grad.storage_offset() + start)
                    part[:, start:stop].addmm_(rows[:, :count], some)

    def _gradients(self) -> Iterator[tuple[Tensor, int, int]]:
        """For each present gradient: it flattened, how many columns it has, and which is the first."""
        stop = 0
        for grad, chunk in zip(self._dense_gradients(), self.widths, strict=True):
            stop += chunk
            if grad is not None and chunk:
                yield grad.reshape(-1), chunk, stop - chunk

    def _dense_gradients(self) -> Iterator[Tensor | None]:
        for p in self.parameters:
            grad = p.grad
            if grad is not None and grad.layout != torch.strided:
                raise ValueError(f"grad of a parameter of shape {tuple(p.shape)} is {grad.layout}: use dense ones.")
            yield grad

    def _checked(self, coefficients: Sequence[float] | Tensor) -> list[float]:
        weights: list[float] = coefficients.tolist() if isinstance(coefficients, Tensor) else list(coefficients)
        if len(weights) != self.blocks:
            raise ValueError(f"coefficients has {len(weights)} entries: give one for each of {self.blocks} blocks.")
        return weights

    @staticmethod
    def _check_shape(tensor: Tensor | Unit | UnitInPlace, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"tensor has shape {tuple(tensor.shape)}: this block map needs {shape}.")


@torch.no_grad()
def accumulate(into: Tensor, coefficients: Sequence[float] | Tensor, codeword: Tensor) -> None:
    """``into[b] += coefficients[b] * codeword`` for every row, in place.

    Args:
        into: (rows, m) buffer: the gradient's blocks, or some positions of them.
        coefficients: one number a row, such as a decoder's weight times `decoders.block_coefficients`.
        codeword: (m,), of any float dtype, on the buffer's device: the same positions of a codeword.

    Raises:
        ValueError: for a wrong number of coefficients, or a codeword of another length.
    """
    weights: list[float] = coefficients.tolist() if isinstance(coefficients, Tensor) else list(coefficients)
    if codeword.shape != into.shape[1:] or len(weights) != len(into):
        raise ValueError(
            f"{len(weights)} coefficients for a codeword of shape {tuple(codeword.shape)}: a buffer of shape "
            f"{tuple(into.shape)} needs {len(into)} and {tuple(into.shape[1:])}."
        )
    if len(weights) == 1:
        into[0].add_(codeword, alpha=weights[0])
        return
    # Casting first costs m numbers once; letting each row promote costs more than twice as much (profiled).
    into.addr_(torch.tensor(weights, dtype=into.dtype, device=into.device), codeword.to(into.dtype))
