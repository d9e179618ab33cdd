"""A Lightning strategy whose ranks are alone: it knows who they are, and has no process group."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ParallelStrategy

_Object = TypeVar("_Object")


class SeparateRanks(ParallelStrategy):
    """Processes that Lightning counts and lets be: none waits for another, and rank 0 decides.

    Attributes:
        num_nodes: machines, which the Trainer sets.
    """

    num_nodes = 1

    # Who and where this process is.

    @property
    def num_processes(self) -> int:
        """Processes on this node."""
        return len(self.parallel_devices) if self.parallel_devices is not None else 1

    @property
    def root_device(self) -> torch.device:
        """This rank's device; ranks beyond the devices given share them in turn."""
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank % len(self.parallel_devices)]

    def set_world_ranks(self) -> None:
        """Tell the environment which rank this process is."""
        assert self.cluster_environment is not None
        self.cluster_environment.set_world_size(self.num_nodes * self.num_processes)
        self.cluster_environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)

    def model_to_device(self) -> None:
        """Move the module to this rank's device."""
        assert self.model is not None
        self.model.to(self.root_device)

    # Collectives: outside the exchange every rank is alone.

    def reduce(self, tensor: _Object, *args: Any, **kwargs: Any) -> _Object:
        """Metrics live on rank 0, over the full validation set: nothing to reduce."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Rank 0 decides."""
        return decision

    def barrier(self, name: str | None = None) -> None:
        """Workers start when rank 0 is ready, so there is nobody to wait for."""

    def broadcast(self, obj: _Object, src: int = 0) -> _Object:
        """Workers receive what they need when they join."""
        return obj
