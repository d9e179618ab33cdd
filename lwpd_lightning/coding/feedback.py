"""The memory of what a worker meant to send and what did not arrive: rounding, and the directions of a sketch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.sender import Sender
from lwpd_lightning.coding.sketch import SketchCode
from lwpd_lightning.coding.wire import WireFormat

_NOTHING = slice(0, 0)


class ErrorFeedback(Sender):
    """What did not arrive of a worker's codewords, added to what the next ones are made from.

    The memory is a matrix M (r, d). What a codeword is meant to carry, X (r, d), is added; the codeword is M seen along
    a row u of unit norm, and what arrives of it, Q, is taken off along that row:

        M <- M + X        y = u^T M        M <- M - u (x) Q(y)

    However many codewords were sent, the sum of all u (x) Q(y) differs from the sum of all X by M alone.

    - Where the rows are fixed, only rounding is lost, and it stays in the codeword's own direction: r = 1, u = 1, X the
      worker's plain codeword (Seide et al., Interspeech 2014).
    - Where they change from version to version (a sketch), r = B, u = h, the version's row, and X the gradient's blocks
      of the worker's data part: Q is taken after quantisation, so what int8 lost and what h did not show both come back
      (Stich et al., NeurIPS 2018; Karimireddy et al., ICML 2019). The decoder adds h (x) Q as it is: the factor B that
      would make it unbiased is made up for by the memory.

    A sketch's memory is kept as Z = Q M, seen along each of the B rows of its orthogonal matrix Q: a codeword then is a
    row of Z, and what arrives of it is taken off that row alone.

    A codeword is settled once it is known to count: the memory of one that came too late still holds all of it. Whoever
    adds codewords up also gives its own memory what packing the sum lost (`give_back`), so that this comes back too, as
    the server's error does in DoubleSqueeze (Tang et al., ICML 2019), but without a memory of its own.

    Args:
        code: the code.
        worker: whose codewords these are.
        blocks: layout of the trainable parameters.
        into: not used: codewords lie in the memory.
    """

    remembers = True

    def __init__(self, code: Code, worker: int, blocks: BlockMap, into: Tensor | None = None) -> None:
        super().__init__(code, worker, blocks, into)
        self._rows = code.rows.to(blocks.device, blocks.dtype) if isinstance(code, SketchCode) else None
        self._seen = torch.zeros(
            1 if self._rows is None else len(self._rows), blocks.block_size, dtype=blocks.dtype, device=blocks.device
        )
        self._touched: set[int] = set()  # parameters of which the memory may hold something
        self._version = 0
        self._unsettled: int | None = None  # the version whose codeword was made last, while it is all in the memory
        self._goes_on = False  # whether that codeword was made before this sender took the memory over
        self._again = False  # whether it is now made again: its gradients are in the memory already
        self._row = 0  # along which the codeword made last was seen
        self._settled: tuple[slice, Tensor] | None = None  # where it arrived whole, and what that was
        # What is lost of the sum lies in the gradient's space: only there can it be given back.
        self.takes_residuals = self._rows is not None or code.blocks == 1

    @property
    def memory(self) -> Tensor:
        """M, (r, d)."""
        return self._seen if self._rows is None else self._rows.T @ self._seen

    def begin(self, version: int) -> None:
        """Start the codeword of a version, on top of what earlier ones left out."""
        self._version = version
        self._again, self._goes_on = self._goes_on and version == self._unsettled, False

    def add(self, part: int, factor: float = 1.0) -> None:
        """Add ``factor`` times a data part's gradients, which a backward has just left in ``.grad``, to the memory."""
        if self._again:
            return
        if self._rows is not None:
            self._blocks.add_along(self._rows if factor == 1.0 else factor * self._rows, self._seen)
        else:
            self._blocks.encode(factor * self._code.coefficients(self._worker)[part], self._seen[0])

    def codeword(self) -> Tensor:
        """The codeword of the version, (d,): a view of the memory, as it is until that is settled or added to."""
        code = self._code.at(self._version)
        self._row, self._settled = code.row if isinstance(code, SketchCode) else 0, None
        self._unsettled = self._version
        return self._seen[self._row]

    def held(self, touched: set[int]) -> set[int]:
        """All that ever got a gradient: what is taken off the memory must not be left out of the gradient."""
        self._touched |= touched
        return self._touched

    @torch.no_grad()
    def settle(self, wire: WireFormat, packed: Tensor, kept: slice = _NOTHING) -> Tensor:
        """Take off what arrives of the codeword that was made last; again, when something else does after all.

        Values that are not finite leave nothing behind: they were delivered as such, and must not spoil later ones.
        Arguments and what it returns are `Sender.settle`'s.
        """
        self.unsettle(wire, packed)
        codeword = self._seen[self._row]
        own = codeword[kept].clone()
        self._settled, self._unsettled = (kept, own), None
        wire.add_to(packed, codeword, -1.0)
        codeword[kept].zero_()
        # A row has no zeros: what is not finite in one row of the memory is in all others too.
        if not wire.finite(packed, len(codeword)):
            self.discard()
        return own

    @torch.no_grad()
    def unsettle(self, wire: WireFormat, packed: Tensor) -> None:
        """Put back what was taken off, where anything was: the memory holds all of the codeword again."""
        if self._settled is None:
            return
        before, held = self._settled
        codeword = self._seen[self._row]
        wire.add_to(packed, codeword, 1.0)
        codeword[before] = held
        self._settled, self._unsettled = None, self._version

    @torch.no_grad()
    def discard(self) -> None:
        """Forget what is not finite."""
        self._seen.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    @torch.no_grad()
    def forget(self) -> None:
        """Forget everything: what made the codeword too large cannot be told from the rest."""
        self._seen.zero_()
        self._settled = self._unsettled = None

    @torch.no_grad()
    def give_back(self, start: int, stop: int, lost: Tensor) -> None:
        """Add to the memory, along the row of the codeword made last, what positions ``start`` to ``stop`` lost."""
        lost = lost.to(self._seen).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self._seen[self._row, start:stop].add_(lost)

    def state_dict(self) -> dict[str, Any]:
        """The memory, the parameters that it may hold something of, and the version whose codeword is not settled."""
        return {"seen": self._seen.clone(), "touched": sorted(self._touched), "unsettled": self._unsettled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a memory; raises ValueError for one of another layout."""
        seen = state_dict["seen"]
        if seen.shape != self._seen.shape:
            raise ValueError(f"memory of shape {tuple(seen.shape)}: this layout's has {tuple(self._seen.shape)}.")
        self._seen.copy_(seen)
        self._touched, self._settled = set(state_dict["touched"]), None
        self._unsettled, self._goes_on = state_dict["unsettled"], True
