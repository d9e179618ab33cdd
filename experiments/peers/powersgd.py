"""PowerSGD: gradient matrices averaged over all ranks at low rank (Vogels, Karimireddy & Jaggi, NeurIPS 2019).

The algorithm is that of its authors' maintained implementation (github.com/epfml/powersgd): warm start, error
feedback, and in each update one power iteration from the left and one from the right, both of which are used. Its bytes
are those of the paper, rank * (rows + columns) numbers a matrix and update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class _Matrices:
    """All compressed gradients of one shape, g of them.

    Attributes:
        positions: theirs among all gradients.
        error: (g, rows, columns), what this rank has not yet sent of them.
        left: (g, rows, r), and
        right: (g, columns, r), whose product is the approximation.
    """

    positions: list[int]
    error: Tensor
    left: Tensor
    right: Tensor

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Move the gradients to what is to be sent."""
        for error, position in zip(self.error, self.positions, strict=True):
            error.add_(gradients[position].view_as(error))
            gradients[position].zero_()

    def project(self, basis: Tensor, coordinates: Tensor, error: Tensor) -> None:
        """Make ``basis`` orthonormal, write the error's ``coordinates`` in it, and keep what it does not reach."""
        basis.copy_(torch.linalg.qr(basis).Q)
        torch.bmm(error.mT, basis, out=coordinates)
        error.baddbmm_(basis, coordinates.mT, alpha=-1)

    def add_product(self, gradients: Sequence[Tensor]) -> None:
        """Add the approximation to the gradients."""
        for position, left, right in zip(self.positions, self.left, self.right, strict=True):
            gradients[position].view(len(left), len(right)).addmm_(left, right.T)


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
        dtype = parameters[0].dtype
        # One buffer for all matrices' left factors and one for the right, so that each is one all-reduce.
        self._left = torch.empty(sum(len(at) * rows * r for (rows, _, r), at in at_shape.items()), dtype=dtype)
        self._right = torch.empty(sum(len(at) * columns * r for (_, columns, r), at in at_shape.items()), dtype=dtype)
        self._left.normal_(generator=torch.Generator().manual_seed(0))  # the same on every rank
        lefts = self._left.split([len(at) * rows * r for (rows, _, r), at in at_shape.items()])
        rights = self._right.split([len(at) * columns * r for (_, columns, r), at in at_shape.items()])
        self._groups = [
            _Matrices(
                at,
                torch.zeros(len(at), rows, columns, dtype=dtype),
                left.view(len(at), rows, r),
                right.view(len(at), columns, r),
            )
            for ((rows, columns, r), at), left, right in zip(at_shape.items(), lefts, rights, strict=True)
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
            self._average(gradients)()
            return
        finish = self._average([gradients[position] for position in self._plain])
        if self._groups:
            for group in self._groups:
                group.take(gradients)
                group.project(group.left, group.right, group.error)
            self._all_reduce(self._right)()
            for group in self._groups:
                group.add_product(gradients)
                group.project(group.right, group.left, group.error.mT)
            self._all_reduce(self._left)()
            for group in self._groups:
                group.add_product(gradients)
        finish()

    def _average(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Start averaging tensors in one all-reduce; calling the result waits and writes the averages back."""
        if not tensors:
            return lambda: None
        packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
        wait = self._all_reduce(packed)

        def finish() -> None:
            wait()
            for tensor, average in zip(tensors, packed.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(average.view_as(tensor))

        return finish

    def _all_reduce(self, buffer: Tensor) -> Callable[[], None]:
        """Start averaging a buffer; calling the result waits."""
        self.payload_bytes += buffer.nbytes
        work = dist.all_reduce(buffer, async_op=True)

        def finish() -> None:
            work.wait()
            buffer.div_(dist.get_world_size())

        return finish
