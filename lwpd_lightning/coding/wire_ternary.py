"""Codewords as ternary digits, five in a byte."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from lwpd_lightning.coding.ternary import DIGITS, dequantise, quantise
from lwpd_lightning.coding.wire import CHUNK, register
from lwpd_lightning.coding.wire_levels import LevelFormat


@register
class _Ternary(LevelFormat):
    """Values -s, 0 and +s of each chunk's level s: about 1.6 bits a value.

    Biased towards large values, unless they were rotated: small ones arrive as zeros until error feedback has made them
    large. `ternary.quantise` has the rule, both levels and the bound of what is lost.
    """

    name = "ternary"
    digits = DIGITS

    def _quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return quantise(rows, self._unbiased)

    def _dequantise(self, levels: Tensor, packed: Tensor, out: Tensor) -> None:
        dequantise(levels, packed, out)

    def _pack_fast(self, fast: ModuleType, values: Tensor, payload: Tensor) -> None:
        fast.pack(values.numpy(), CHUNK, payload.numpy(), self._unbiased)

    def _unpack_fast(self, fast: ModuleType, payload: Tensor, values: Tensor) -> None:
        fast.unpack(payload.numpy(), CHUNK, values.numpy())

    def _add_fast(self, fast: ModuleType, payload: Tensor, out: Tensor, scale: float) -> None:
        fast.add(payload.numpy(), CHUNK, out.numpy(), scale)
