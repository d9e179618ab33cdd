"""From decoded rows to the gradient in the parameters: the interface, and the linear way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code


class Receiver(ABC):
    """What every rank makes of an update's decoded rows, which are the same everywhere.

    Args:
        code: the code.
        blocks: layout of the trainable parameters.
        one_version: whether all codewords of an update are of its own version.

    Attributes:
        rows: rows of d values that a decoded gradient has.
    """

    def __init__(self, code: Code, blocks: BlockMap, one_version: bool) -> None:
        self._code, self._blocks = code, blocks
        self.rows = self.count_rows(code, one_version)

    @classmethod
    @abstractmethod
    def count_rows(cls, code: Code, one_version: bool) -> int:
        """`rows` of a receiver for such a code."""

    @classmethod  # noqa: B027 - most need nothing
    def warm_up(cls, code: Code) -> None:
        """Load what decoding needs, once, before ranks are forked, which then share it."""

    @abstractmethod
    def weights(self, coefficients: Tensor, version: int) -> Tensor:
        """With what each codeword enters each decoded row: (rows, m) float64.

        Args:
            coefficients: (m, B) float64, with what it is to enter each block of the gradient.
            version: the update's.
        """

    @abstractmethod
    def gradient(self, decoded: Tensor, version: int, touched: Sequence[bool], *, views: bool = False) -> None:
        """Set every parameter's ``grad`` to the gradient that was decoded.

        Perhaps more than once for an update, and for one that is decided again afterwards; the model is at the version.

        Args:
            decoded: (rows, d), on any device.
            version: the update's.
            touched: for each parameter, whether it got a gradient; where not, its ``grad`` becomes None.
            views: ``decoded`` is for nobody else, and may become the gradient itself.
        """

    def forget(self) -> None:  # noqa: B027 - most keep nothing
        """The model and its optimizer have taken a state over: what was derived of the one before is void."""

    def state_dict(self) -> dict[str, Any]:
        """What of earlier updates the next ones depend on, in plain containers and tensors; the same on all ranks."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, of any rank's receiver; raises ValueError for another kind's."""
        if state_dict:
            raise ValueError(f"{type(self).__name__} holds nothing of earlier updates, and is given {[*state_dict]}.")


class LinearReceiver(Receiver):
    """One row for each block; or a single one, where all codewords of an update show their blocks along one direction.

    Their sum then is all that can be decoded, and the gradient is that direction times the row.
    """

    def __init__(self, code: Code, blocks: BlockMap, one_version: bool) -> None:
        super().__init__(code, blocks, one_version)
        self._along = _along(code, one_version)

    @classmethod
    def count_rows(cls, code: Code, one_version: bool) -> int:
        """1 along a direction, else B."""
        return 1 if _along(code, one_version) else code.blocks

    @classmethod
    def warm_up(cls, code: Code) -> None:
        """Load the compiled kernels where gradients go along directions."""
        if code.direction is not None:
            kernels.compiled()

    def weights(self, coefficients: Tensor, version: int) -> Tensor:
        """The coefficients themselves, or how long they are along the direction."""
        direction = self._direction(version)
        if direction is None:
            return coefficients.T
        return (coefficients @ direction / (direction @ direction))[None]

    def gradient(self, decoded: Tensor, version: int, touched: Sequence[bool], *, views: bool = False) -> None:
        """Spread the rows over the blocks."""
        direction = self._direction(version)
        self._blocks.scatter(
            decoded.to(self._blocks.device), touched, None if direction is None else direction.tolist(), views=views
        )

    def _direction(self, version: int) -> Tensor | None:
        return self._code.at(version).direction if self._along else None


def _along(code: Code, one_version: bool) -> bool:
    return one_version and code.direction is not None
