"""Peers that exchange every H updates: each rank makes steps of its own meanwhile, on its part of each batch.

What is validated is the model of the last exchange, which all ranks have; a fit ends with an exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from .shares import mean_in_int8
from .strategy import DDPPeer

ExchangeDtype = Literal["float32", "int8"]


class FirstAveragedPeer(DDPPeer):
    """DDP whose reducer averages gradients in the first updates, and leaves each rank its own from then on.

    Torch's hook of post-local SGD. Without averaged updates there is no reducer at all.

    Args:
        averaged_updates: how many.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(self, averaged_updates: int = 0, **settings: Any) -> None:
        if averaged_updates < 0:
            raise ValueError(f"averaged_updates={averaged_updates} is negative: use 0 or more.")
        super().__init__(**settings)
        self.averaged_updates = averaged_updates
        self._hooked: PostLocalSGDState | None = None
        self._parameters: Sequence[Tensor] = ()

    def configure_ddp(self) -> None:
        """Start all ranks from rank 0's states."""
        assert self.model is not None
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.averaged_updates:
            DDPStrategy.configure_ddp(self)
        else:
            _sync_module_states(self.model)

    def _register_ddp_hooks(self) -> None:
        super()._register_ddp_hooks()
        assert isinstance(self.model, DistributedDataParallel)
        self._hooked = PostLocalSGDState(None, None, self.averaged_updates, post_local_gradient_allreduce=False)
        self.model.register_comm_hook(self._hooked, post_localSGD_hook)

    def on_train_start(self) -> None:
        """A fit that goes on has made some of its updates."""
        if self._hooked is not None:
            self._hooked.iter = self._trainer.global_step

    @property
    def averages(self) -> bool:
        """Whether the update under way has averaged gradients."""
        return self._trainer.global_step < self.averaged_updates

    def _aggregate(self) -> None:
        self._payload_bytes = self._bucket_bytes if self.averages else 0

    def _exchanged(self, payload_bytes: int, began_at: float) -> None:
        """An exchange has followed the update's own; ``began_at`` by the monotonic clock."""
        assert self.last_step is not None
        self.last_step = replace(
            self.last_step,
            wait_s=self.last_step.wait_s + time.monotonic() - began_at,
            payload_bytes=self.last_step.payload_bytes + payload_bytes,
        )


class LocalSGDPeer(FirstAveragedPeer):
    """Parameters are averaged every H updates (local SGD: Stich, 2019; after averaged updates post-local: Lin et al.).

    The averaging is torch's, and so is what it leaves alone: the optimizer's state stays each rank's own. A checkpoint
    holds rank 0's.

    Args:
        every: H.
        averaged_updates: how many updates average gradients before the first local one.

    Raises:
        ValueError: for an H below 1, or a negative number of updates.
    """

    def __init__(self, every: int = 8, averaged_updates: int = 0, **settings: Any) -> None:
        if every < 1:
            raise ValueError(f"every={every} is no number of updates: use 1 or more.")
        super().__init__(averaged_updates, **settings)
        self.every = every
        self._local_updates = 0
        self._common = torch.empty(0)
        self._own: Tensor | None = None

    def on_train_start(self) -> None:
        """Ranks start with the same parameters."""
        super().on_train_start()
        self._local_updates = 0

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **settings: Any
    ) -> Any:
        """The rank's own step and, after every H of them, the exchange."""
        local = not self.averages
        if local and not self._local_updates:
            self._common = _flat(self._parameters)
        result = super().optimizer_step(optimizer, closure, model, **settings)
        self._local_updates += local
        last = self._trainer.global_step + 1 == self._trainer.max_steps
        if self._local_updates == self.every or (last and self._local_updates):
            self._meet()
        return result

    def on_train_end(self) -> None:
        """All ranks end with the same parameters, also where a fit was stopped."""
        if self._local_updates:
            self._meet()

    def on_validation_start(self) -> None:
        """The model of the last exchange is validated."""
        if self._local_updates:
            self._own = _flat(self._parameters)
            _fill(self._parameters, self._common)

    def on_validation_end(self) -> None:
        """Each rank goes on with its own."""
        if self._own is not None:
            _fill(self._parameters, self._own)
            self._own = None

    def _meet(self) -> None:
        began_at = time.monotonic()
        payload_bytes = self._exchange()
        self._local_updates = 0
        self._exchanged(payload_bytes, began_at)

    def _exchange(self) -> int:
        """Give all ranks the same parameters; returns the payload in bytes."""
        average_parameters(iter(self._parameters), dist.group.WORLD)  # type: ignore[arg-type]
        return sum(parameter.nbytes for parameter in self._parameters)


class DiLoCoPeer(LocalSGDPeer):
    """DiLoCo (Douillard et al., 2023): every H updates an outer Nesterov step along the mean of what ranks moved by.

    The inner optimizer is the user's, its state each rank's own. The outer gradient is the common model less the mean
    of the ranks' models. A checkpoint holds rank 0's inner state; a resumed fit starts the outer momentum anew.

    Args:
        every: H. The authors' choice is 500.
        lr: of the outer step.
        momentum: of the outer step, Nesterov's; 0: plain.
        exchange_dtype: of outer gradients on their way: "float32", or "int8" both ways with a level for each 1,024.
        averaged_updates: how many updates average gradients before the first local one.

    Raises:
        ValueError: for an H below 1, another dtype, or a rate or momentum that `torch.optim.SGD` refuses.
    """

    def __init__(
        self,
        every: int = 500,
        lr: float = 0.7,
        momentum: float = 0.9,
        exchange_dtype: ExchangeDtype = "float32",
        averaged_updates: int = 0,
        **settings: Any,
    ) -> None:
        if exchange_dtype not in get_args(ExchangeDtype):
            choices = ", ".join(map(repr, get_args(ExchangeDtype)))
            raise ValueError(f"exchange_dtype={exchange_dtype!r} is unknown: use one of {choices}.")
        super().__init__(every, averaged_updates, **settings)
        self.exchange_dtype = exchange_dtype
        self._outer_settings = {"lr": lr, "momentum": momentum, "nesterov": momentum > 0}
        SGD([torch.zeros(1)], **self._outer_settings)  # type: ignore[arg-type]  # refuses what cannot be
        self._outer: SGD | None = None

    def on_train_start(self) -> None:
        """The outer momentum begins at zero."""
        super().on_train_start()
        self._outer = SGD([torch.empty(0)], **self._outer_settings)  # type: ignore[arg-type]

    def _exchange(self) -> int:
        assert self._outer is not None
        moved = self._common - _flat(self._parameters)
        if self.exchange_dtype == "int8":
            moved, payload_bytes = mean_in_int8(moved)
        else:
            payload_bytes = moved.nbytes
            dist.all_reduce(moved)
            moved /= dist.get_world_size()
        (common,) = self._outer.param_groups[0]["params"]
        common.data, common.grad = self._common, moved
        self._outer.step()
        _fill(self._parameters, self._common)
        return payload_bytes


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


@torch.no_grad()
def _fill(parameters: Sequence[Tensor], flat: Tensor) -> None:
    for parameter, values in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(values.view_as(parameter))
