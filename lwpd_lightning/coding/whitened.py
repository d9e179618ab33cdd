"""Codewords that an optimizer does not notice are coarse: in its own metric, rotated, and without a memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.metric import Metric
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.rotation import Rotation
from lwpd_lightning.coding.sender import PlainSender


class WhitenedSender(PlainSender):
    """The worker's row of the code times its gradients, each block divided by its row of D, and rotated.

    All of it is linear and the same on all ranks at one version, so that codewords of one version add up as plain ones
    do. What is lost on the wire is lost: an unbiased format loses nothing on average.

    Args:
        code: the code.
        worker: whose codewords these are.
        blocks: layout of the trainable parameters.
        metric: D, which the rank's receiver has too.
        rotation: the same.
        into: where codewords are to lie (`Sender`).
    """

    spreads = True
    one_version = True

    def __init__(
        self,
        code: Code,
        worker: int,
        blocks: BlockMap,
        metric: Metric,
        rotation: Rotation,
        into: Tensor | None = None,
    ) -> None:
        super().__init__(code, worker, blocks, into)
        self._metric, self._rotation = metric, rotation
        self._version, self._rotated = 0, False

    def begin(self, version: int) -> None:
        """Start from nothing."""
        super().begin(version)
        self._version, self._rotated = version, False

    def add(self, part: int, factor: float = 1.0) -> None:
        """Mix the gradients in by the part's coefficients, in the metric of the version."""
        self._mix(factor * self._rows[part], self._metric.at(self._version))

    def codeword(self) -> Tensor:
        """What was mixed, rotated once."""
        codeword = super().codeword()
        if not self._rotated:
            self._rotation.turn(codeword, self._version)
            self._rotated = True
        return codeword


class WhitenedReceiver(LinearReceiver):
    """Rotates each decoded row back and takes it times its row of D.

    Args:
        code: the code.
        blocks: layout of the trainable parameters.
        one_version: whether all codewords of an update are of its own version, as they must be.
        metric: D, which the rank's sender has too.
        rotation: the same.
    """

    def __init__(self, code: Code, blocks: BlockMap, one_version: bool, metric: Metric, rotation: Rotation) -> None:
        super().__init__(code, blocks, one_version)
        self._metric, self._rotation = metric, rotation
        self._rows: Tensor | None = None

    @torch.no_grad()
    def gradient(self, decoded: Tensor, version: int, touched: Sequence[bool], *, views: bool = False) -> None:
        """In the decoded rows where they are for nobody else."""
        rows = decoded.to(self._blocks.device) if views else self._own_rows(decoded)
        unit = self._metric.at(version)
        for b, (turned, row) in enumerate(zip(rows if views else decoded, rows, strict=True)):
            self._rotation.turn_back(turned, version, row, unit, b)
        super().gradient(rows, version, touched, views=True)

    def _own_rows(self, like: Tensor) -> Tensor:
        if self._rows is None:
            self._rows = torch.empty_like(like, device=self._blocks.device, memory_format=torch.contiguous_format)
        return self._rows

    def forget(self) -> None:
        """D is of the optimizer's state."""
        self._metric.forget()
