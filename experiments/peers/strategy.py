"""Lightning strategies for data-parallel training by all-reduce over Gloo, on the batches of a coded run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lwpd_lightning.data import seed_of_the_run, training_loader
from lwpd_lightning.injection import CpuShare, StragglerInjector
from lwpd_lightning.worker_callback import WorkerCallback

from .batches import share_of
from .launcher import ForkedRanks
from .powersgd import PowerSGD

GradientDtype = Literal["float32", "bfloat16"]
_Kind = TypeVar("_Kind", bound=pl.Callback)


@dataclass(frozen=True)
class AllReduceStep:
    """One update of this rank.

    Attributes:
        compute_s: seconds from its training_step to the last of its own gradients.
        wait_s: seconds from there to the averaged gradients.
        payload_bytes: bytes of gradient that it handed to all-reduces.
    """

    compute_s: float
    wait_s: float
    payload_bytes: int


class DDPPeer(DDPStrategy):
    """Lightning's DDPStrategy over Gloo: every rank computes an equal part of each batch, DDP all-reduces in buckets.

    What is DDP's own stays as it is: its reducer, bucket sizes and overlap, with ``gradient_as_bucket_view=True`` as
    its authors recommend. What is changed is around it. Batches are those of a coded run with the same seed: rank r of
    n trains on part r of n. Validation inside of a fit is spread over the ranks, each sample once. Ranks are forked,
    and no process group outlives its fit. Straggler delays come before a rank's training_step, so that none of its
    gradients is ready earlier.

    Args:
        gradient_dtype: what is all-reduced: "float32", the gradients as they are (DDP's default path, without a hook),
            or "bfloat16" (torch's bf16_compress_hook, which Lightning registers on CUDA only).

    Attributes:
        started_at: ``time.perf_counter()`` at the start of the last fit, before its ranks were forked.
        last_step: this rank's last update.
        store: where the ranks of a fit on one machine meet.
    """

    def __init__(self, gradient_dtype: GradientDtype = "float32", **settings: Any) -> None:
        if gradient_dtype not in get_args(GradientDtype):
            choices = ", ".join(map(repr, get_args(GradientDtype)))
            raise ValueError(f"gradient_dtype={gradient_dtype!r} is unknown: use one of {choices}.")
        super().__init__(process_group_backend="gloo", gradient_as_bucket_view=True, **settings)
        self.gradient_dtype = gradient_dtype
        self.store: dist.Store | None = None
        self.seed = 0
        self.started_at = 0.0
        self.last_step: AllReduceStep | None = None
        self._payload_bytes = self._bucket_bytes = 0
        self._step_at = self._computed_at = 0.0

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    # Starting and ending.

    def _configure_launcher(self) -> None:
        if self.root_device.type != "cpu":
            raise ValueError(
                f"trainer.accelerator={self.root_device.type} is not supported by a peer, which all-reduces over Gloo: "
                "use trainer.accelerator=cpu."
            )
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError("the ranks of a peer are forked, which this platform cannot: use Linux.")
        self._launcher = ForkedRanks(self)

    def refuse(self, trainer: pl.Trainer) -> None:
        """Refuse, before any rank is forked, what would make its updates other than a coded run's.

        Raises:
            MisconfigurationException: gradients are accumulated over batches, or Lightning would cut batches itself.
            ValueError: a straggler model or shares do not fit the number of ranks, or the machine.
        """
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} is not supported by a peer: use 1 and a "
                "larger batch_size, which is the whole update's batch."
            )
        if trainer._accelerator_connector.use_distributed_sampler:
            raise MisconfigurationException(
                "use_distributed_sampler=True is not supported by a peer, which cuts batches into its ranks' parts "
                "itself: use False."
            )
        for injector in _of_kind(trainer, StragglerInjector):
            injector.model.check(self.world_size)
        for shares in _of_kind(trainer, CpuShare):
            shares.check(trainer)

    def begin(self) -> None:
        """A fit starts: what its ranks must share before they are forked."""
        self.started_at = time.perf_counter()
        self.seed = seed_of_the_run()
        self.last_step = None

    def setup_distributed(self) -> None:
        """Open the process group of a fit; anything else runs on rank 0 alone."""
        if self._trainer.state.fn is not TrainerFn.FITTING:
            return
        if self.store is None:  # on several machines or under an outside launcher: the environment tells
            super().setup_distributed()
        else:
            dist.init_process_group(
                "gloo", store=self.store, rank=self.global_rank, world_size=self.world_size, timeout=self._timeout
            )
        self.seed = self.broadcast(self.seed)

    def setup(self, trainer: pl.Trainer) -> None:
        """Set a fit up as DDP does; without a process group there are no states to synchronise."""
        if trainer.state.fn is TrainerFn.FITTING:
            super().setup(trainer)
            # Before each batch Lightning's loop waits for rank 0's word of a SIGTERM, by which no fit ends here: see
            # `ForkedRanks.kill`.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
            return
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.setup_precision_plugin()

    def _register_ddp_hooks(self) -> None:
        assert isinstance(self.model, DistributedDataParallel)
        if self.gradient_dtype == "bfloat16":
            self.model.register_comm_hook(None, self._all_reduce_bfloat16)
        else:
            sizes = self.model._get_ddp_logging_data()["bucket_sizes"]
            self._bucket_bytes = sum(int(size) for size in str(sizes).split(","))

    def _all_reduce_bfloat16(self, group, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations as strings
        self._payload_bytes += bucket.buffer().numel() * torch.bfloat16.itemsize
        return bf16_compress_hook(group, bucket)

    def teardown(self) -> None:
        """Close the process group, so that the next fit, of whatever strategy, finds none."""
        super().teardown()
        if dist.is_initialized():
            dist.destroy_process_group()

    # Data.

    def process_dataloader(self, dataloader: object) -> object:
        """This rank's part of each training batch; in a fit, also its share of the validation batches."""
        trainer = self._trainer
        if trainer.state.fn is not TrainerFn.FITTING:
            return dataloader
        if not trainer.training:
            limit = trainer.limit_val_batches
            return share_of(dataloader, self.global_rank, self.world_size, limit)  # type: ignore[arg-type]
        return training_loader(
            trainer, dataloader, data_parts=self.world_size, parts=(self.global_rank,), seed=self.seed
        )

    # One update.

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Be as late as the straggler model says, then compute.

        A slow worker's factor applies to the compute time of its last update, since this one's is not known yet.
        """
        trainer, rank = self._trainer, self.global_rank
        for callback in _of_kind(trainer, WorkerCallback):
            callback.on_codeword_start(trainer, rank, trainer.global_step)
        for injector in _of_kind(trainer, StragglerInjector):
            injector.hold_back(rank, trainer.global_step, self.last_step.compute_s if self.last_step else 0.0)
        self._step_at = time.monotonic()
        return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backward and averaging, before ``on_after_backward`` sees the gradients."""
        assert self.lightning_module is not None
        module, precision = self.lightning_module, self.precision_plugin
        self.pre_backward(closure_loss)
        closure_loss = precision.pre_backward(closure_loss, module)
        closure_loss.register_hook(self._await_own_gradients)
        self._payload_bytes = 0
        precision.backward(closure_loss, module, optimizer, *args, **kwargs)
        self._aggregate()
        self.last_step = AllReduceStep(
            self._computed_at - self._step_at, time.monotonic() - self._computed_at, self._payload_bytes
        )
        closure_loss = precision.post_backward(closure_loss, module)
        self.post_backward(closure_loss)
        return closure_loss

    def _await_own_gradients(self, gradient: Tensor) -> None:
        # Autograd's final callbacks run in order: this one before DDP's, which waits for the all-reduces.
        torch.autograd.Variable._execution_engine.queue_callback(self._own_gradients_are_ready)

    def _own_gradients_are_ready(self) -> None:
        self._computed_at = time.monotonic()

    def _aggregate(self) -> None:
        """DDP's reducer has averaged already, during the backward; what it says of its buckets is what it sent."""
        self._payload_bytes += self._bucket_bytes


class AlonePeer(DDPPeer):
    """Ranks that exchange no gradients: each trains a model of its own, from the same start on its part of each batch.

    What computing alone takes where ranks share cores; nothing that is trained so is of use.
    """

    def configure_ddp(self) -> None:
        """There is no reducer."""

    def _aggregate(self) -> None:
        self._payload_bytes = 0


class PowerSGDPeer(DDPPeer):
    """`PowerSGD` in place of DDP's reducer: gradients are compressed and averaged when the backward has ended.

    As in the authors' implementation, and unlike in torch's hook (CUDA only; over Gloo it hangs), all matrices travel
    together: two all-reduces of factors and one of vectors an update. Buffers, such as running statistics, are not
    broadcast; a checkpoint holds rank 0's. Errors and factors are not checkpointed: a resumed fit starts them anew.

    Args:
        rank: of the approximation.
        min_compression_rate: matrices that shrink by no more than this are averaged whole.
        uncompressed_updates: how many updates are averaged whole before the first compressed one.

    Raises:
        ValueError: for a rank below 1, a negative rate or a negative number of updates.
    """

    def __init__(
        self, rank: int = 4, min_compression_rate: float = 2.0, uncompressed_updates: int = 0, **settings: Any
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank} approximates nothing: use 1 or more.")
        for name, value in (
            ("min_compression_rate", min_compression_rate),
            ("uncompressed_updates", uncompressed_updates),
        ):
            if value < 0:
                raise ValueError(f"{name}={value} is negative: use 0 or more.")
        super().__init__(**settings)
        self._settings = (rank, min_compression_rate, uncompressed_updates)
        self._parameters: Sequence[Tensor] = ()
        self._powersgd: PowerSGD | None = None

    def configure_ddp(self) -> None:
        """Start all ranks from rank 0's states; there is no reducer."""
        assert self.model is not None
        _sync_module_states(self.model)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._powersgd = PowerSGD(self._parameters, *self._settings)

    def _aggregate(self) -> None:
        assert self._powersgd is not None
        for parameter in self._parameters:
            if parameter.grad is None:  # another rank may have one
                parameter.grad = torch.zeros_like(parameter)
        self._powersgd.aggregate([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        self._payload_bytes = self._powersgd.payload_bytes


def _of_kind(trainer: pl.Trainer, kind: type[_Kind]) -> list[_Kind]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
