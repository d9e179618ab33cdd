"""Codewords as scaled signed bytes, rounded to the nearest or without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from lwpd_lightning.coding.wire import CHUNK, WireFormat, register

_ODD = 0x9E3779B97F4A7C15  # so that seeds of versions are not those of another rank's


@register
class _Int8(WireFormat):
    """ceil(d/1024) float32 scales (each chunk's absmax / 127), then d signed bytes.

    A chunk that holds a value that is not finite has an infinite or NaN scale and bytes of 0: all of it arrives as NaN.

    Args:
        generator: on the codewords' device: rounds at random, so that the expectation of what arrives is the codeword
            itself; None: to the nearest.
    """

    name = "int8"

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator
        self._seed = 0 if generator is None else generator.initial_seed()

    @classmethod
    def unbiased(cls, device: torch.device, seed: int) -> WireFormat:
        """Rounded at random."""
        return cls(torch.Generator(device).manual_seed(seed))

    def begin(self, version: int) -> None:
        if self._generator is not None:
            self._generator.manual_seed((self._seed + _ODD * version) % 2**63)

    def nbytes(self, size: int) -> int:
        return 4 * -(-size // CHUNK) + size

    def pack(self, codeword: Tensor) -> Tensor:
        size = codeword.numel()
        header = self.nbytes(size) - size
        values = torch.nn.functional.pad(codeword.detach().float(), (0, -size % CHUNK)).view(-1, CHUNK)
        scales = values.abs().amax(dim=1) / 127
        levels = values / scales[:, None]
        if self._generator is None:
            levels.round_()
        else:
            noise = torch.rand(levels.shape, generator=self._generator, device=levels.device)
            levels.add_(noise).floor_()
        # The cast of anything else is undefined: 0/0 in a chunk of zeros, NaN, a quotient by a subnormal scale
        # (coarse), 127 plus noise.
        levels = levels.nan_to_num_(nan=0.0).clamp_(-127, 127)
        payload = torch.empty(self.nbytes(size), dtype=torch.uint8, device=codeword.device)
        payload[:header].view(torch.float32).copy_(scales)
        payload[header:].view(torch.int8).copy_(levels.view(-1)[:size])
        return payload

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        header = self.nbytes(size) - size
        scales = payload[4 * (start // CHUNK) : 4 * -(-stop // CHUNK)]
        return torch.cat([scales, payload[header + start : header + stop]])

    def finite(self, payload: Tensor, size: int) -> bool:
        scales = payload[: self.nbytes(size) - size].clone().view(torch.float32)
        return bool(scales.isfinite().all())

    def read(self, payload: Tensor, size: int) -> Tensor:
        header = self.nbytes(size) - size
        scales = payload[:header].clone().view(torch.float32)
        values = torch.zeros(scales.numel(), CHUNK, device=payload.device)
        values.view(-1)[:size] = payload[header:].view(torch.int8)
        return values.mul_(scales[:, None]).view(-1)[:size]
