"""Codewords as signs, eight in a byte."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lwpd_lightning.coding.ternary import FLOAT32_MAX
from lwpd_lightning.coding.wire import CHUNK, register
from lwpd_lightning.coding.wire_levels import LevelFormat

BITS = 8


@register
class _Sign(LevelFormat):
    """Values -s and +s of each chunk's level s: about 1.03 bits a value. Zeros arrive as +s.

    The level is the mean of |x|, by which least is lost (scaled signs: Karimireddy et al., ICML 2019); unbiased it is
    ``sum x^2 / sum |x|``, so that values which were rotated at random arrive in expectation (DRIVE: Vargaftik et al.,
    NeurIPS 2021, theorem 2).
    """

    name = "sign"
    digits = BITS

    def _quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return quantise(rows, self._unbiased)

    def _dequantise(self, levels: Tensor, packed: Tensor, out: Tensor) -> None:
        dequantise(levels, packed, out)

    def _pack_fast(self, fast: ModuleType, values: Tensor, payload: Tensor) -> None:
        fast.pack_signs(values.numpy(), CHUNK, payload.numpy(), self._unbiased)

    def _unpack_fast(self, fast: ModuleType, payload: Tensor, values: Tensor) -> None:
        fast.unpack_signs(payload.numpy(), CHUNK, values.numpy())

    def _add_fast(self, fast: ModuleType, payload: Tensor, out: Tensor, scale: float) -> None:
        fast.add_signs(payload.numpy(), CHUNK, out.numpy(), scale)


def quantise(rows: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """(m, L) float32 rows of L >= 1 values -> (m,) float32 levels and (m, ceil(L/8)) uint8, on the rows' device.

    Bit p of byte j is 1 where value ``p * ceil(L/8) + j`` is not negative. A row with a value that is not finite has
    the level NaN; otherwise the level is finite, and 0 for a row of zeros.
    """
    wide = rows.double()
    level = wide.abs().mean(1)
    if unbiased:
        # Scaled, so that squares are neither lost nor infinite.
        level = torch.where(level == 0, level, level * (wide / level[:, None]).square().mean(1))
    level = torch.where(level.isfinite(), level.clamp(max=FLOAT32_MAX), torch.nan)
    m, length = rows.shape
    bits = torch.zeros(m, -(-length // BITS) * BITS, dtype=torch.uint8, device=rows.device)
    bits[:, :length] = rows >= 0
    places = 2 ** torch.arange(BITS, dtype=torch.uint8, device=rows.device)
    return level.float(), (bits.view(m, BITS, -1) * places[:, None]).sum(1, dtype=torch.uint8)


def dequantise(levels: Tensor, packed: Tensor, out: Tensor) -> None:
    """Write (m, L) values to ``out``: the inverse of `quantise`, from (m,) levels and (m, ceil(L/8)) bytes."""
    places = torch.arange(BITS, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> places[:, None]) & 1
    signs = 2 * bits.view(torch.int8) - 1
    out.copy_(signs.reshape(len(packed), -1)[:, : out.shape[1]]).mul_(levels[:, None])
