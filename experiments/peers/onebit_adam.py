"""1-bit Adam: after a warm-up the variance stays, and momentum is averaged by its signs (Tang et al., ICML 2021).

As in DeepSpeed's reference: after the warm-up each rank moves the common momentum by its own gradient, all ranks'
momenta are averaged in one bit a value, with error feedback at workers and servers, and a magnitude for each parameter
(at a server for its share of each). What differs: all parameters travel together; Adam's bias corrections stay (the
variance's is that of the last update of the warm-up), so that the warm-up is the user's own optimizer; and the mask of
what has no momentum, which DeepSpeed's users have to give since a bit cannot say 0, is of what had no gradient in the
warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .shares import exchange
from .signs import Segment, Signs, signs


@dataclass
class _Parameter:
    """One parameter and its place.

    Attributes:
        group: its parameter group, for the rates of the moment.
        own: the parameter.
        place: its values in the vectors of all parameters, rank r's share of them the r-th of n equal parts.
        denominator: of its steps, of its shape; fixed. Infinite where it had no gradient.
    """

    group: dict[str, Any]
    own: Tensor
    place: Segment
    denominator: Tensor


class OnebitAdam:
    """The steps after the warm-up, over the ranks of the default process group.

    The momentum stays where the optimizer keeps it, so that a checkpoint holds it; errors begin at zero.

    Args:
        optimizer: the user's, with the state that the warm-up left, the same on all ranks.
        warmup_updates: how many updates it made.

    Attributes:
        payload_bytes: of an update.
        errors: of this rank as a worker, and as a server.
    """

    def __init__(self, optimizer: Adam, warmup_updates: int) -> None:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        self._optimizer, self._decoupled = optimizer, isinstance(optimizer, AdamW)
        self._parameters: list[_Parameter] = []
        at = 0
        for group in optimizer.param_groups:
            for own in group["params"]:
                if own not in optimizer.state:  # it had no gradient in the warm-up
                    continue
                size = -(-own.numel() // (8 * ranks)) * 8 * ranks
                state, corrected = optimizer.state[own], 1 - group["betas"][1] ** warmup_updates
                variance = state["exp_avg_sq"] / corrected
                denominator = variance.sqrt().add_(group["eps"]).masked_fill_(variance == 0, float("inf"))
                self._parameters.append(_Parameter(group, own, Segment(at, size, own.numel()), denominator))
                at += size
        self._momentum = torch.zeros(at)
        self._gradient = torch.zeros(at)
        for one in self._parameters:
            state = optimizer.state[one.own]
            state["exp_avg"] = self._of(self._momentum, one).copy_(state["exp_avg"])
        shares = [one.place.size // ranks for one in self._parameters]
        starts = [one.place.start // ranks for one in self._parameters]
        self._shares = list(zip(starts, shares, strict=True))
        used = [min(max(one.place.used - rank * s, 0), s) for one, s in zip(self._parameters, shares, strict=True)]
        self._worker = Signs([one.place for one in self._parameters])
        self._server = Signs([Segment(*share, u) for share, u in zip(self._shares, used, strict=True)])
        self.errors = self._worker.error, self._server.error
        self.payload_bytes = 0

    def step(self) -> None:
        """From this rank's gradients; all ranks end with the same parameters and momentum."""
        for one in self._parameters:
            place = self._of(self._gradient, one)
            place.zero_() if one.own.grad is None else place.copy_(one.own.grad)
            if not self._decoupled and one.group["weight_decay"]:
                place.add_(one.own.detach(), alpha=one.group["weight_decay"])
        segments = [self._momentum[p.start : p.start + p.size] for p in (one.place for one in self._parameters)]
        moves = self._gradient.split([one.place.size for one in self._parameters])
        torch._foreach_lerp_(segments, list(moves), [1 - one.group["betas"][0] for one in self._parameters])
        self._average()
        self._apply()

    def _average(self) -> None:
        ranks, kept = dist.get_world_size(), 4 * len(self._parameters)  # bytes of magnitudes in each message
        magnitudes, bits = self._worker.pack(self._momentum)
        packed = torch.empty(ranks, kept + len(bits) // ranks, dtype=torch.uint8)
        packed[:, :kept] = magnitudes.view(torch.uint8)
        for one, (start, size) in zip(self._parameters, self._shares, strict=True):
            first = one.place.start // 8
            columns = slice(kept + start // 8, kept + (start + size) // 8)
            packed[:, columns] = bits[first : first + one.place.size // 8].view(ranks, -1)

        def mean(received: Tensor) -> Tensor:
            magnitudes, values = _unpacked(received, kept)
            total = torch.cat(
                [magnitudes[:, at] @ values[:, s : s + size] for at, (s, size) in enumerate(self._shares)]
            )
            magnitudes, bits = self._server.pack(total.div_(ranks))
            return torch.cat([magnitudes.view(torch.uint8), bits])

        gathered, self.payload_bytes = exchange(packed, mean)
        magnitudes, values = _unpacked(gathered, kept)
        for at, (one, (start, size)) in enumerate(zip(self._parameters, self._shares, strict=True)):
            momentum = self._momentum[one.place.start : one.place.start + one.place.size].view(ranks, -1)
            torch.mul(values[:, start : start + size], magnitudes[:, at, None], out=momentum)

    @torch.no_grad()
    def _apply(self) -> None:
        for one in self._parameters:
            state, lr = self._optimizer.state[one.own], float(one.group["lr"])
            state["step"] += 1
            if self._decoupled:
                one.own.mul_(1 - lr * one.group["weight_decay"])
            corrected = 1 - one.group["betas"][0] ** float(state["step"])
            one.own.addcdiv_(self._of(self._momentum, one), one.denominator, value=-lr / corrected)

    def _of(self, values: Tensor, one: _Parameter) -> Tensor:
        return values[one.place.start : one.place.start + one.place.used].view_as(one.own)


def refuse_optimizers(optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError for what is no Adam or AdamW, or a variant of it."""
    for optimizer in optimizers:
        if not isinstance(optimizer, Adam | AdamW):
            raise ValueError(
                f"{type(optimizer).__name__} is not supported by 1-bit Adam: use torch.optim.Adam or AdamW."
            )
        for name in ("amsgrad", "maximize"):
            if any(group.get(name) for group in optimizer.param_groups):
                raise ValueError(f"{name}=True is not supported by 1-bit Adam: use False.")


def _unpacked(packed: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Magnitudes (rows, segments) and signs (rows, positions)."""
    magnitudes, bits = packed.split([kept, packed.shape[1] - kept], dim=1)
    return magnitudes.contiguous().view(torch.float32), signs(bits.contiguous())
