"""What a peer's ranks do, in one process: each rank's own model, optimizer and part of every batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lwpd_lightning.data import CodedLoader
from tests.integration.models import Classifier, classification, loader

RANKS = 4
CLIP = 0.5


class Rank:
    """One rank of ``RANKS``; batches are those of a fit with this seed."""

    def __init__(self, rank: int, make: Callable[..., torch.optim.Optimizer], seed: int) -> None:
        self.model = Classifier(make)
        self.parameters = list(self.model.parameters())
        self.optimizer = make(self.parameters)
        self._rank = rank
        batches = loader(classification(), shuffle=True)
        self._batches = CodedLoader(batches, data_parts=RANKS, parts=(rank,), seed=seed)

    def gradients(self, update: int) -> list[torch.Tensor]:
        """Of this rank's part of the batch, not clipped."""
        epoch, index = divmod(update, len(self._batches))
        x, y = self._batches.batch(epoch, index).parts[self._rank]
        loss = torch.nn.functional.cross_entropy(self.model.net(x), y)
        return list(torch.autograd.grad(loss, self.parameters))

    def clip(self, gradients: list[torch.Tensor]) -> None:
        """Into the parameters' gradients."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)

    def step(self, gradients: list[torch.Tensor]) -> None:
        """The optimizer's, along clipped gradients."""
        self.clip(gradients)
        self.optimizer.step()

    @property
    def flat(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    @torch.no_grad()
    def fill(self, flat: torch.Tensor) -> None:
        for parameter, values in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.copy_(values.view_as(parameter))


def averaged(ranks: list[Rank], update: int) -> list[torch.Tensor]:
    """The mean of all ranks' gradients."""
    return [torch.stack(of).mean(0) for of in zip(*(rank.gradients(update) for rank in ranks), strict=True)]
