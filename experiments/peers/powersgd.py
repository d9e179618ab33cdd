"""PowerSGD: gradient matrices averaged over all ranks at low rank (Vogels, Karimireddy & Jaggi, NeurIPS 2019).

The algorithm is that of its authors' maintained implementation (github.com/epfml/powersgd): warm start, error
feedback, and in each update one power iteration from the left and one from the right on what the first left over, both
of which are used. Its bytes are those of the paper: rank * (rows + columns) numbers a matrix and update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class _Matrices:
    """The compressed gradients of one shape, g of them, of which each rank has a batch M, (g, rows, columns).

    Left iteration: P orthonormal, Q = M^T P, averaged; right iteration: Q' = orth(Q), P' = (M - P Q^T) Q', averaged.
    The average of M is taken for P Q^T + P' Q'^T; what a rank's own M has beyond that is its error.

    Args:
        positions: theirs among all gradients.
        left: (g, rows, r), where P comes from and P' goes.
        right: (g, columns, r), where Q goes.

    Attributes:
        error: (g, rows, columns).
    """

    def __init__(self, positions: list[int], left: Tensor, right: Tensor) -> None:
        self.positions, self._left, self._right = positions, left, right
        self.error = torch.zeros(len(positions), left.shape[1], right.shape[1], dtype=left.dtype)
        self._basis = self._own = left  # set in each update

    def iterate_left(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients to the error, which makes it M; leaves this rank's Q in ``right``."""
        for matrix, position in zip(self.error, self.positions, strict=True):
            matrix.add_(gradients[position].view_as(matrix))
        self._basis = torch.linalg.qr(self._left).Q
        # Transposed: as M^T P the product takes up to 15 times as long, as M is stored by rows and P by columns.
        self._right.copy_((self._basis.mT @ self.error).mT)
        self._own = self._right.clone()

    def iterate_right(self) -> None:
        """From the averaged Q; leaves this rank's P' in ``left``."""
        self._average, basis = self._right.clone(), torch.linalg.qr(self._right).Q
        self._right.copy_(basis)
        torch.bmm(self.error, basis, out=self._left)
        self._left.baddbmm_(self._basis, self._own.mT @ basis, alpha=-1)
        # One pass over the matrices for both products.
        sent = torch.cat([self._own, basis], dim=-1)
        self.error.baddbmm_(torch.cat([self._basis, self._left], dim=-1), sent.mT, alpha=-1)

    def write(self, gradients: Sequence[Tensor]) -> None:
        """From the averaged P': the average gradients."""
        lefts = torch.cat([self._basis, self._left], dim=-1)
        rights = torch.cat([self._average, self._right], dim=-1)
        for position, left, right in zip(self.positions, lefts, rights, strict=True):
            torch.mm(left, right.T, out=gradients[position].view(len(left), len(right)))


class PowerSGD:
    """Averages gradients over the ranks of the default process group; every rank gets the same result.

    A gradient of shape (rows, ...) is a matrix of rows x the rest. It is compressed where that makes it more than
    ``min_compression_rate`` times smaller; the others, vectors among them, are averaged as they are.

    Args:
        parameters: whose gradients; in the same order on every rank, of one dtype, on the CPU.
        rank: of the approximation, at least 1.
        min_compression_rate: matrices that shrink by no more than this are not compressed.
        uncompressed_updates: how many updates are averaged whole before the first compressed one.

    Attributes:
        payload_bytes: what the last `aggregate` handed to all-reduces on this rank.
    """

    def __init__(
        self, parameters: Sequence[Tensor], rank: int, min_compression_rate: float = 2.0, uncompressed_updates: int = 0
    ) -> None:
        at_shape: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._plain: list[int] = []
        for position, parameter in enumerate(parameters):
            rows = parameter.shape[0] if parameter.dim() else 1
            columns = parameter.numel() // rows
            r = min(rank, rows, columns)
            compressed = parameter.numel() > min_compression_rate * r * (rows + columns)
            (at_shape[rows, columns, r] if compressed else self._plain).append(position)
        # Two all-reduces an update: right factors and whatever is not compressed, then left factors.
        dtype, plain = parameters[0].dtype, [parameters[position].numel() for position in self._plain]
        lefts = [len(at) * rows * r for (rows, _, r), at in at_shape.items()]
        rights = [len(at) * columns * r for (_, columns, r), at in at_shape.items()]
        self._second = torch.empty(sum(lefts), dtype=dtype)
        self._second.normal_(generator=torch.Generator().manual_seed(0))  # the same on every rank
        self._first = torch.empty(sum(rights) + sum(plain), dtype=dtype)
        right_values, self._plain_values = self._first.split([sum(rights), sum(plain)])
        self._groups = [
            _Matrices(at, left.view(len(at), rows, r), right.view(len(at), columns, r))
            for ((rows, columns, r), at), left, right in zip(
                at_shape.items(), self._second.split(lefts), right_values.split(rights), strict=True
            )
        ]
        self._uncompressed_updates = uncompressed_updates
        self.payload_bytes = 0

    @property
    def errors(self) -> dict[int, Tensor]:
        """Position of a compressed gradient -> what this rank has not yet sent of it, (rows, columns)."""
        return {at: error for group in self._groups for at, error in zip(group.positions, group.error, strict=True)}

    def aggregate(self, gradients: Sequence[Tensor]) -> None:
        """Replace the gradients, in place, by their approximate average; what it leaves out comes in later updates."""
        self.payload_bytes = 0
        if self._uncompressed_updates > 0:
            self._uncompressed_updates -= 1
            whole = torch.cat([gradient.flatten() for gradient in gradients])
            self._average(whole)
            _unpack(whole, gradients)
            return
        plain = [gradients[position] for position in self._plain]
        if plain:
            torch.cat([gradient.flatten() for gradient in plain], out=self._plain_values)
        for group in self._groups:
            group.iterate_left(gradients)
        self._average(self._first)
        for group in self._groups:
            group.iterate_right()
        self._average(self._second)
        for group in self._groups:
            group.write(gradients)
        _unpack(self._plain_values, plain)

    def _average(self, buffer: Tensor) -> None:
        if buffer.numel():
            self.payload_bytes += buffer.nbytes
            dist.all_reduce(buffer)
            buffer.div_(dist.get_world_size())


def _unpack(packed: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, values in zip(tensors, packed.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
