"""Codewords as floating-point numbers: float64, float32 and bfloat16."""

from typing import ClassVar

import torch
from torch import Tensor

from lwpd_lightning.coding.wire import WireFormat, register


class _Float(WireFormat):
    _dtype: ClassVar[torch.dtype]

    def carries(self, dtype: torch.dtype) -> bool:
        return dtype == self._dtype

    def nbytes(self, size: int) -> int:
        return size * self._dtype.itemsize

    def pack(self, codeword: Tensor) -> Tensor:
        return codeword.detach().to(self._dtype).contiguous().view(torch.uint8)

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        return payload[start * self._dtype.itemsize : stop * self._dtype.itemsize]

    def read(self, payload: Tensor, size: int) -> Tensor:
        # A slice behind an odd header cannot be viewed as wider values.
        aligned = payload if payload.storage_offset() % self._dtype.itemsize == 0 else payload.clone()
        return aligned.contiguous().view(self._dtype)


@register
class _Float64(_Float):
    name, lossy, _dtype = "float64", False, torch.float64


@register
class _Float32(_Float):
    name, lossy, _dtype = "float32", False, torch.float32


@register
class _Bfloat16(_Float):
    name, lossy, _dtype = "bfloat16", True, torch.bfloat16
