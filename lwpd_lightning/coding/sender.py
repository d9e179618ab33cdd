"""From the gradients that backward passes leave behind to what a worker sends: the interface, and the plain way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.unit import Unit, UnitInPlace
from lwpd_lightning.coding.wire import WireFormat


class Sender(ABC):
    """One worker's codewords, one after the other: `begin`, `add` each part, `codeword`, and `settle` if it counts.

    Args:
        code: the code.
        worker: whose codewords these are.
        blocks: layout of the trainable parameters.
        into: (d,) of the layout's dtype, from where a codeword travels as it lies there; one may lie elsewhere. None:
            there is no such memory.

    Attributes:
        remembers: whether what is not sent of a gradient comes with later codewords, and what packing a sum of one row
            lost of it too. A codeword of such a sender stays as it is only until it is settled.
        takes_residuals: whether `give_back` has a use for what packing a sum lost.
        spreads: whether every value of a codeword holds something of many, so that coarse wire formats lose nothing on
            average.
        one_version: whether only codewords of one version add up.
    """

    remembers: bool = False
    spreads: bool = False
    one_version: bool = False
    takes_residuals: bool = False

    def __init__(self, code: Code, worker: int, blocks: BlockMap, into: Tensor | None = None) -> None:
        self._code, self._worker, self._blocks, self._into = code, worker, blocks, into

    @abstractmethod
    def begin(self, version: int) -> None:
        """Start the codeword of a version."""

    @abstractmethod
    def add(self, part: int, factor: float = 1.0) -> None:
        """Add ``factor`` times a data part's gradients, which a backward has just left in ``.grad``."""

    @abstractmethod
    def codeword(self) -> Tensor:
        """The codeword that was begun last, (d,): as it is until it is settled or the next one begins."""

    @abstractmethod
    def settle(self, wire: WireFormat, packed: Tensor, kept: slice) -> Tensor:
        """Take note that the codeword made last counts; again, where the update is decided again.

        Args:
            wire: how it travels.
            packed: the codeword as it travels.
            kept: positions at which it crosses no wire, and arrives as it is.

        Returns:
            What the codeword holds there.
        """

    @abstractmethod
    def unsettle(self, wire: WireFormat, packed: Tensor) -> None:
        """Take note that the codeword made last does not count after all, if it was settled; arguments as there."""

    @abstractmethod
    def discard(self) -> None:
        """The codeword made last goes nowhere: what is not finite of it must not spoil later ones."""

    def forget(self) -> None:
        """The codeword made last is too large and goes nowhere: nothing of it may come with later ones."""
        self.discard()

    def held(self, touched: set[int]) -> set[int]:
        """The parameters, by position, of which the codeword may hold something.

        Args:
            touched: those that got a gradient since it was begun.
        """
        return touched

    def give_back(self, start: int, stop: int, lost: Tensor) -> None:
        """Take back what positions ``start`` to ``stop`` of a sum lost when they were packed.

        Args:
            start: first position.
            stop: past the last one.
            lost: (stop - start,), divided by the weight that this worker's codewords have in the sum.

        Raises:
            NotImplementedError: by a sender that ``takes_residuals`` of nobody.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What of earlier codewords the next ones depend on, in plain containers and tensors; between two codewords.

        Where the codeword made last is not settled, it is in there too: a sender that goes on with such a state makes
        the same codeword where the same version begins, whatever is added to it.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, of a sender of the same worker; raises ValueError for another's."""
        if state_dict:
            raise ValueError(f"{type(self).__name__} holds nothing of earlier codewords, and is given {[*state_dict]}.")


class PlainSender(Sender):
    """The worker's row of the code times its gradients, and nothing else.

    >>> import torch
    >>> from lwpd_lightning.coding.families import uncoded
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> sender = PlainSender(uncoded(2), 1, BlockMap([weight], blocks=1))
    >>> weight.grad = torch.tensor([1.0, 2.0])
    >>> sender.begin(0)
    >>> sender.add(1)
    >>> sender.codeword()
    tensor([1., 2.])
    """

    def __init__(self, code: Code, worker: int, blocks: BlockMap, into: Tensor | None = None) -> None:
        super().__init__(code, worker, blocks, into)
        self._codeword = blocks.codeword() if into is None else into
        self._rows, self._fresh = code.coefficients(worker), True

    def begin(self, version: int) -> None:
        """Start from nothing."""
        self._fresh = True
        self._rows = self._code.at(version).coefficients(self._worker)

    def add(self, part: int, factor: float = 1.0) -> None:
        """Mix the gradients in by the part's coefficients."""
        self._mix(factor * self._rows[part], None)

    def _mix(self, coefficients: Tensor, unit: Unit | UnitInPlace | None) -> None:
        self._blocks.encode(coefficients, self._codeword, unit, fresh=self._fresh)
        self._fresh = False

    def codeword(self) -> Tensor:
        """The same buffer each time."""
        if self._fresh:
            self._codeword.zero_()
            self._fresh = False
        return self._codeword

    def discard(self) -> None:
        """Nothing of it is kept."""

    def settle(self, wire: WireFormat, packed: Tensor, kept: slice) -> Tensor:
        """What is lost on the wire is lost."""
        return self._codeword[kept]

    def unsettle(self, wire: WireFormat, packed: Tensor) -> None:
        """Nothing was taken off."""
