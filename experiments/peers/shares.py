"""The mean over ranks of what is sent in few bits, in two phases, as 1-bit Adam and int8 all-reduces do.

Each rank is the server of an n-th of the positions. Every rank sends each server its share, the server takes the mean
in float32 and packs it again, and all ranks gather the means: what a ring all-reduce sends, in few bits both ways.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 1024  # values that share a level
_LEVELS = 127


def exchange(packed: Tensor, mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """Send each rank its share of ``packed`` and gather what each made of what it was sent.

    Args:
        packed: uint8, (n, bytes): row r is for rank r.
        mean: what this rank, as a server, makes of all ranks' shares for it, (n, bytes): the packed mean, (bytes',).

    Returns:
        The packed means of all servers, (n, bytes'), and the payload in bytes: what a ring all-reduce would have been
        handed to send as much.
    """
    received = torch.empty_like(packed)
    dist.all_to_all_single(received, packed)
    mine = mean(received)
    gathered = torch.empty(len(packed), len(mine), dtype=torch.uint8)
    dist.all_gather(list(gathered), mine)
    return gathered, (packed.nbytes + gathered.nbytes) // 2


def mean_in_int8(values: Tensor) -> tuple[Tensor, int]:
    """The mean of float32 values (P,) over all ranks, the same bits on each, and the payload in bytes.

    Values travel in int8, rounded to the nearest, with a level for each `BLOCK` of them: its greatest magnitude / 127.
    """
    ranks = dist.get_world_size()
    share = -(-len(values) // (ranks * BLOCK)) * BLOCK
    padded = torch.zeros(ranks, share)
    padded.view(-1)[: len(values)] = values

    def mean(shares: Tensor) -> Tensor:
        return pack_int8(unpack_int8(shares).mean(dim=0, keepdim=True)).view(-1)

    gathered, payload = exchange(pack_int8(padded), mean)
    return unpack_int8(gathered).view(-1)[: len(values)], payload


def pack_int8(values: Tensor) -> Tensor:
    """Float32 (rows, columns), columns a multiple of `BLOCK`, to uint8 (rows, bytes): levels, then values.

    >>> unpack_int8(pack_int8(torch.full((1, BLOCK), -3.0))).unique()
    tensor([-3.])
    """
    blocks = values.view(len(values), -1, BLOCK)
    levels = blocks.abs().amax(dim=2, keepdim=True).div_(_LEVELS)
    digits = (blocks / levels.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    parts = [part.view(len(values), -1).view(torch.uint8) for part in (levels, digits)]
    return torch.cat(parts, dim=1)


def unpack_int8(packed: Tensor) -> Tensor:
    """Back to float32 (rows, columns)."""
    blocks = packed.shape[1] // (BLOCK + torch.float32.itemsize)
    levels, digits = packed.split([blocks * torch.float32.itemsize, blocks * BLOCK], dim=1)
    levels = levels.contiguous().view(torch.float32)
    values = digits.contiguous().view(torch.int8).view(len(packed), blocks, BLOCK) * levels[..., None]
    return values.view(len(packed), -1)
