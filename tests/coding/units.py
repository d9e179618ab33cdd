"""One D in both forms: laid out, and where tensors of the parameters' shapes hold its squares."""

import numpy as np
import torch

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.addresses import addresses
from lwpd_lightning.coding.unit import Tables, Unit, UnitInPlace, over_chunks
from lwpd_lightning.coding.wire import CHUNK


def both(blocks, random):
    """Of random squares, which a third of the parameters lack; in place where the kernels take such blocks."""
    shape = blocks.blocks, -(-blocks.block_size // CHUNK)
    means, floors = (torch.rand(shape, generator=random, dtype=blocks.dtype) + 0.1 for _ in range(2))
    squares, spread = blocks.zeros(), over_chunks(means, blocks.block_size)
    held, factors = [], torch.rand(len(blocks.parameters), generator=random).tolist()
    for position, p in enumerate(blocks.parameters):
        if torch.rand((), generator=random) < 1 / 3:
            held.append(None)
            blocks.columns(squares, position).copy_(blocks.columns(spread, position))
        else:
            order = torch.channels_last if p.ndim == 4 else torch.contiguous_format
            held.append(torch.rand(p.shape, generator=random).to(p.dtype).contiguous(memory_format=order))
            blocks.lay_out(position, held[-1], factors[position], out=squares)
    found = [Unit(squares, floors)]
    if (fast := kernels.compiled_for(squares)) is not None:
        values, copies = addresses(held)
        factors = np.array(factors, np.float32)
        tables = Tables(values, factors, blocks.layout, means.numpy(), floors.numpy())
        found.append(UnitInPlace(tables, [*copies, *held], fast))
    return found
