"""Ternary quantisation: each row of values becomes one level and its digits -1, 0 and +1, five of them in a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGITS = 5  # in a byte: 3^5 = 243 of its 256 values are used
# Just under the mean, whose float32 sum may be off by a few parts in a million: the largest |x| must reach it.
BELOW_THE_MEAN = 1 - 1e-5
# Sums are of x * 2^-11: they stay finite where x is, and lose nothing but what is next to the smallest numbers.
_SCALE = 2.0**-11
_ROWS = 128  # that the host takes at a time: half a megabyte stays in a core's cache
FLOAT32_MAX = float(np.finfo(np.float32).max)


def quantise(rows: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """(m, L) float32 rows of L >= 1 values -> (m,) float32 levels and (m, ceil(L/5)) uint8, on the rows' device.

    A row's threshold is the mean of its |x|, its level s the mean of the |x| that reach it; x becomes -s, 0 or +s. The
    rule is that of ternary weight networks (Li, Zhang & Liu, 2016) with a threshold of 1 in place of 0.7 means. Digit
    p (0..4) of byte j, of value 3^p, is that of value ``p * ceil(L/5) + j``, plus one.

    What is lost of a row, ``|x - Q(x)|^2``, is at most ``(1 - 1/L) |x|^2``: with m values that reach the mean u,
    ``|x - Q(x)|^2 = |x|^2 - m s^2``, where s >= u and m s >= max|x|, so that ``m s^2 >= u max|x| >= |x|^2 / L``. The
    bound is that of sending the largest value of each row alone, and is approached only where one value reaches the
    mean and all others nearly do; of Gaussian values a fifth is lost. It holds up to float32 rounding, and not for rows
    without a value above 1e-30, which may arrive as zeros.

    A row with a value that is not finite has the level NaN. Otherwise the level is finite, and 0 for a row of zeros.

    ``unbiased``: the same digits with the level ``s = sum x^2 / sum |x|``, the latter over those that reach the mean,
    so that ``<Q(x), x> = |x|^2``. Of rows that were rotated at random ``E Q(x)`` then is x (DRIVE: Vargaftik et al.,
    NeurIPS 2021, theorem 2; EDEN: ICML 2022); a bound of what is lost it has not.
    """
    if rows.device.type == "cpu":
        some = [_quantise_by_numpy(piece.numpy(), unbiased) for piece in torch.split(rows, _ROWS)]
        return torch.cat([levels for levels, _ in some]), torch.cat([digits for _, digits in some])
    levels, digits = _quantise_on_device(rows, unbiased)
    return levels, _bytes(digits)


def dequantise(levels: Tensor, packed: Tensor, out: Tensor) -> None:
    """Write (m, L) values to ``out`` on the host: the inverse of `quantise`, from (m,) levels and (m, ceil(L/5)) bytes.

    A byte of 243 or more, which `quantise` never makes, is read with a last digit that stands for twice the level.
    """
    rest = packed.numpy()
    digits = np.empty((len(rest), DIGITS, rest.shape[1]), np.uint8)
    for p in range(DIGITS - 1):
        quotient = rest // 3
        np.subtract(rest, quotient * 3, out=digits[:, p])  # several times as fast as the remainder
        rest = quotient
    digits[:, DIGITS - 1] = rest
    digits -= 1  # wraps to -1 as int8
    signs = digits.view(np.int8).reshape(len(rest), -1)[:, : out.shape[1]]
    out.copy_(torch.from_numpy(signs)).mul_(levels[:, None])  # numpy's cast takes four times as long


def _quantise_by_numpy(rows: np.ndarray[Any, np.dtype[np.float32]], unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """`_quantise_on_device` in numpy, whose comparisons and byte arithmetic take a third of torch's time on a CPU."""
    m, length = rows.shape
    weights = np.full((length, 1), _SCALE, np.float32)

    def total(values: Any) -> Any:
        # One dot product a row: a matrix-vector product would add a row up differently among others than alone.
        return np.matmul(values[:, None], weights)[:, 0, 0].astype(np.float64) / _SCALE

    with np.errstate(all="ignore"):
        magnitudes = np.abs(rows)
        threshold = (total(magnitudes) * (BELOW_THE_MEAN / length)).astype(np.float32)[:, None]
        reaches, above = rows >= threshold, rows > -threshold
        bytes_ = reaches.view(np.uint8), above.view(np.uint8)
        count = length + bytes_[0].sum(1, dtype=np.uint16).astype(int) - bytes_[1].sum(1, dtype=np.uint16)
        np.maximum(magnitudes, threshold, out=magnitudes)
        floor = threshold[:, 0].astype(np.float64)
        level = floor + (total(magnitudes) - length * floor) / np.maximum(count, 1)
        if unbiased:
            units = (rows / level[:, None]).astype(np.float32)  # whose squares are neither lost nor infinite
            energy = np.matmul(units[:, None], units[:, :, None])[:, 0, 0].astype(np.float64)
            level = np.where(level == 0, level, level * (energy / np.maximum(count, 1)))
        levels = np.minimum(level, FLOAT32_MAX).astype(np.float32)
    digits = np.ones((m, -(-length // DIGITS) * DIGITS), np.uint8)
    np.add(bytes_[0], bytes_[1], out=digits[:, :length])
    return torch.from_numpy(levels), torch.from_numpy(_bytes(digits.reshape(m, DIGITS, -1)))


def _quantise_on_device(rows: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """(m, L) -> (m,) levels and (m, 5, ceil(L/5)) digits 0, 1 and 2."""
    m, length = rows.shape
    magnitudes = rows.abs()
    threshold = (magnitudes.sum(1, dtype=torch.float64) * (BELOW_THE_MEAN / length)).float()[:, None]
    reaches, above = rows >= threshold, rows > -threshold
    count = length + reaches.sum(1) - above.sum(1)
    # The sum of those that reach it, by what they have above it: no second mask.
    excess = (torch.maximum(magnitudes, threshold).double() - threshold).sum(1)
    level = threshold[:, 0] + excess / count.clamp(min=1)
    if unbiased:
        energy = (rows.double() / level[:, None]).square().sum(1) / count.clamp(min=1)
        level = torch.where(level == 0, level, level * energy)
    levels = level.clamp(max=FLOAT32_MAX).float()
    digits = torch.ones(m, -(-length // DIGITS) * DIGITS, dtype=torch.uint8, device=rows.device)
    torch.add(reaches.byte(), above.byte(), out=digits[:, :length])
    return levels, digits.view(m, DIGITS, -1)


def _bytes(digits: Any) -> Any:
    """(m, 5, c) digits of either library -> (m, c) bytes, by Horner's rule."""
    packed = digits[:, DIGITS - 1] * 3
    for p in range(DIGITS - 2, 0, -1):
        packed += digits[:, p]
        packed *= 3
    packed += digits[:, 0]
    return packed
