"""The loops of torch itself: ranks that exchange nothing, DDP over Gloo, and this project's PowerSGD."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.distributed as dist
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel

from ...peers.powersgd import PowerSGD
from ..race.grids import POWERSGD
from .loop import Loop, train


class _OverGloo(Loop):
    """Its ranks have a process group."""

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        super().__init__(cfg, rank, directory)
        dist.init_process_group("gloo", store=dist.PrefixStore("gloo", self.store), rank=rank, world_size=self.ranks)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


class DDP(_OverGloo):
    """torch's DDP, with gradients as views of its buckets as its authors recommend."""

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        super().__init__(cfg, rank, directory)
        self.step = DistributedDataParallel(self.step, gradient_as_bucket_view=True)


class PowerSGDLoop(_OverGloo):
    """This project's PowerSGD between backward and step, as its authors' loop has it."""

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        super().__init__(cfg, rank, directory)
        settings = cfg.scheme.strategy
        self._parameters = list(self.model.parameters())
        self._compressor = PowerSGD(
            self._parameters, settings.rank, uncompressed_updates=settings.get("uncompressed_updates", 0)
        )

    def average(self) -> None:
        """Replace the gradients by their approximate average."""
        self._compressor.aggregate([p.grad for p in self._parameters if p.grad is not None])


LOOPS: dict[str, type[Loop]] = {"alone": Loop, "ddp": DDP, **dict.fromkeys(POWERSGD, PowerSGDLoop)}
run_rank = partial(train, LOOPS)
