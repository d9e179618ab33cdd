"""torchft's loops: per-step DDP and DiLoCo under its own manager, whose lighthouse rank 0 serves.

torchft is imported where it is used, as it is an extra.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed import TCPStore

from ..plain.loop import Loop, train

_LIGHTHOUSE_PORT = 29510
_PATIENCE = timedelta(seconds=120)


class _Managed(Loop):
    """Its rank is a replica group of torchft, alone in it."""

    asynchronous_quorum = True

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        from torchft import Manager, ProcessGroupGloo
        from torchft.coordination import LighthouseServer

        super().__init__(cfg, rank, directory)
        host = os.environ["MASTER_ADDR"]
        own = _own_address() if self.ranks > 1 and host != "127.0.0.1" else host
        self._lighthouse = (
            LighthouseServer(bind=f"[::]:{_LIGHTHOUSE_PORT}", min_replicas=self.ranks) if rank == 0 else None
        )
        self._group_store = TCPStore(own, 0, is_master=True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=_PATIENCE),
            load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict,
            min_replica_size=self.ranks,
            use_async_quorum=self.asynchronous_quorum,
            timeout=_PATIENCE,
            quorum_timeout=_PATIENCE,
            connect_timeout=_PATIENCE,
            rank=0,
            world_size=1,
            store_addr=own,
            store_port=self._group_store.port,
            lighthouse_addr=f"http://{host}:{_LIGHTHOUSE_PORT}",
            replica_id=f"race_{rank}",
            hostname=own,
            init_sync=False,  # the same seed on all ranks
        )

    def close(self) -> None:
        """Shut the manager and the lighthouse down."""
        self.manager.shutdown(wait=False)
        if self._lighthouse is not None:
            self._lighthouse.shutdown()


class _DDP(_Managed):
    """Its DDP, every update."""

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        from torchft import DistributedDataParallel, Optimizer

        super().__init__(cfg, rank, directory)
        self.optimizer = Optimizer(self.manager, self.optimizer)
        self.step = DistributedDataParallel(self.manager, self.step)


class _DiLoCo(_Managed):
    """Its DiLoCo, in buckets."""

    asynchronous_quorum = False  # DiLoCo asks for the other

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        from torchft.local_sgd import DiLoCo

        super().__init__(cfg, rank, directory)
        settings = cfg.scheme.strategy
        outer = torch.optim.SGD(
            self.model.parameters(), lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
        )
        self.around = self._diloco = DiLoCo(
            self.manager, [self.model], self.optimizer, outer, sync_every=settings.every, use_bucketization=True
        )

    def common_model(self) -> AbstractContextManager[object]:
        """With the parameters of the last exchange in the model."""
        (fragment,) = self._diloco._fragments
        return _Swapped(self.model, fragment.original_parameters)


class _Swapped(AbstractContextManager[None]):
    """Other values in a module's parameters, for a while."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self._model, self._values = model, values

    def __enter__(self) -> None:
        self._own = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self._fill(self._values)

    def __exit__(self, *_: object) -> None:
        self._fill(self._own)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(values[name])


def _own_address() -> str:
    """Of this rank's host, on a testbed."""
    from fcntl import ioctl
    from socket import AF_INET, SOCK_DGRAM, inet_ntoa, socket

    with socket(AF_INET, SOCK_DGRAM) as probe:
        request = os.environ["GLOO_SOCKET_IFNAME"].encode().ljust(256, b"\0")
        return inet_ntoa(ioctl(probe.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR


LOOPS: dict[str, type[Any]] = {"ddp": _DDP, "diloco": _DiLoCo}
run_rank = partial(train, LOOPS)
