"""From a batch's data parts to a codeword: training_step, backward, encode, part by part. The same on every rank."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lwpd_lightning.carried import Carried
from lwpd_lightning.coding import BlockMap, Code
from lwpd_lightning.coding.sender import Sender
from lwpd_lightning.coding.wire import WireFormat, all_finite
from lwpd_lightning.data import CodedBatch, derive_seed, drawing_from
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.exchange.update import Contribution, Logged
from lwpd_lightning.links.staging import Staging
from lwpd_lightning.loss_scale import loss_scale, scales_loss
from lwpd_lightning.reduction.reduction import Codeword
from lwpd_lightning.worker_callback import WorkerCallback

if TYPE_CHECKING:
    from lightning.pytorch.plugins.precision import Precision

_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class CodewordComputation:
    """One worker's codewords, one after the other.

    Every data part of every batch draws its randomness (dropout, augmentation on the device) from a stream of its own,
    so that two workers that compute the same task compute the same numbers.

    Args:
        trainer: the trainer, whose module and precision compute the gradients.
        code: the code.
        worker: this worker's row.
        blocks: layout of the trainable parameters.
        sender: makes codewords of gradients. Whoever sends one settles it.
        seed: keys the randomness of all data parts of the run.
        wire: how codewords are packed.
        slot: memory shared with other ranks that packed codewords go to; None: each has memory of its own.
        measures: whether the norms of codewords are asked for, which takes a pass over each.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        code: Code,
        worker: int,
        blocks: BlockMap,
        sender: Sender,
        seed: int,
        wire: WireFormat,
        slot: Tensor | None = None,
        measures: bool = False,
    ) -> None:
        self.blocks = blocks
        self.parts = code.parts(worker)
        self._trainer, self._worker, self._sender, self._seed = trainer, worker, sender, seed
        self._wire, self._slot, self._staging = wire, slot, Staging(blocks.device)
        self._measures = measures
        self._carried = Carried(self._module, code)
        self._statistics = StateLayout.statistics(self._module, blocks.device)
        self._callbacks = [c for c in trainer.callbacks if isinstance(c, WorkerCallback)]  # type: ignore[attr-defined]
        self._losses: list[float] = []
        self._version, self._started = 0, 0.0
        self._explained_sparse = False
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        # To set all generators and set them back takes longer than to move a batch that nobody changes.
        self._changes_batches = any(
            is_overridden(hook, self._module, pl.LightningModule)
            or (datamodule is not None and is_overridden(hook, datamodule, pl.LightningDataModule))
            for hook in _TRANSFER_HOOKS
        )

    @property
    def _module(self) -> pl.LightningModule:
        return self._trainer.lightning_module

    @property
    def _accumulated(self) -> int:
        """Batches that an update is accumulated over."""
        return int(self._trainer.accumulate_grad_batches)

    @property
    def _precision(self) -> Precision:
        return self._trainer.precision_plugin

    def begin(self, version: int, spent_s: float = 0.0) -> None:
        """Start a codeword, for which ``spent_s`` seconds have gone to the step before and to its batch."""
        self._version, self._started = version, time.monotonic() - spent_s
        self._sender.begin(version)
        self._losses = []
        for callback in self._callbacks:
            callback.on_codeword_start(self._trainer, self._worker, version)

    @contextmanager
    def randomness(self, batch: CodedBatch, part: int, *, transfer: bool = False) -> Iterator[None]:
        """Run the transfer hooks or the training_step of a data part under its own random stream."""
        with drawing_from(derive_seed(self._seed, batch.epoch, batch.index, part, int(transfer)), self.blocks.device):
            yield

    def clear_gradients(self) -> None:
        """Forget gradients, so that the next backward writes them instead of adding to them."""
        for parameter in self.blocks.parameters:
            parameter.grad = None

    def encode(self, part: int, loss: Tensor) -> None:
        """Add the data part's gradients, which a backward has just left in ``.grad``, to what is sent.

        Where gradients are accumulated over batches, this happens for each of them, and ``loss`` is its share. Sparse
        gradients (``torch.nn.Embedding(sparse=True)``) become dense, as codewords are. What is sent is of the loss
        itself, whatever the backward had scaled it by.
        """
        for parameter in self.blocks.parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
                self._explain_sparse()
        self._sender.add(part, 1 / loss_scale(self._precision))
        self._losses.append(float(loss.detach()) * self._accumulated)

    def _explain_sparse(self) -> None:
        if not self._explained_sparse:
            self._explained_sparse = True
            rank_zero_warn("sparse gradients are sent as dense codewords: sparse=True saves nothing here.")

    def add_parts(self, batch: CodedBatch, parts: tuple[int, ...]) -> set[int]:
        """Compute and encode ``parts`` of the batch; returns which parameters (by position) got gradients."""
        touched: set[int] = set()
        for part in parts:
            self.add_part(batch, part, self.transferred(batch, part), touched)
        return touched

    def add_part(
        self, batch: CodedBatch, part: int, data: Any, touched: set[int], computed: Callable[[Any], None] | None = None
    ) -> None:
        """Compute and encode one data part; adds to ``touched``, and hands on what training_step returned."""
        output = self._training_step(batch, part, data)
        loss = closure_loss(output) / self._accumulated
        if computed is not None:
            computed(output)
        scaled = self._precision.pre_backward(loss, self._module)
        self.clear_gradients()
        self._precision.backward(scaled, self._module, None)
        self.encode(part, loss)
        touched.update(position for position, has in enumerate(self.blocks.touched()) if has)

    def transferred(self, batch: CodedBatch, part: int) -> Any:
        """A data part on the device, through the module's transfer hooks."""
        module = self._module
        with self.randomness(batch, part, transfer=True) if self._changes_batches else nullcontext():
            data = self._precision.convert_input(batch.parts[part])
            data = module._on_before_batch_transfer(data, dataloader_idx=0)
            return module._apply_batch_transfer_handler(data, device=self.blocks.device, dataloader_idx=0)

    def finish(self, samples: int, touched: set[int], logged: Mapping[str, Logged]) -> tuple[Codeword, Contribution]:
        """The finished codeword, as it is until the next `begin` or until it is settled, and what is told of it."""
        codeword, touched = self._sender.codeword(), self._sender.held(touched)
        packed = self._packed(codeword)
        # 16-mixed leaves a step with infinities out itself, and learns its scale by them.
        if not (finite := scales_loss(self._precision) or self._wire.finite(packed, len(codeword))):
            self._sender.discard()
        norm = _norm(codeword) if self._measures else None
        for callback in self._callbacks:
            callback.on_codeword_end(self._trainer, self._worker, self._version, time.monotonic() - self._started)
        statistics = self._statistics.buffer()
        self._statistics.pack(statistics)
        return Codeword(codeword, packed), Contribution(
            version=self._version,
            touched=[position in touched for position in range(len(self.blocks.parameters))],
            loss=sum(self._losses) / len(self._losses),
            samples=samples,
            compute_s=time.monotonic() - self._started,
            statistics=statistics,
            logged=logged,
            finite=finite,
            norm=norm,
        )

    def _packed(self, codeword: Tensor) -> Tensor:
        self._wire.begin(self._version)
        packed = self._wire.pack(codeword)
        if self._slot is None:
            packed = self._staging.to_host(packed)
            # What travels must stay as it is, and what is settled does not.
            return packed if not self._sender.remembers or packed.data_ptr() != codeword.data_ptr() else packed.clone()
        return packed if packed.data_ptr() == self._slot.data_ptr() else self._slot.copy_(packed)

    def _training_step(self, batch: CodedBatch, part: int, data: Any) -> Any:
        module = self._module
        hook, module._current_fx_name = module._current_fx_name, "training_step"
        arguments = self._trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), data, batch.index)
        with self.randomness(batch, part), self._precision.train_step_context(), self._carried.watched():
            output = module.training_step(*arguments.values())
        module._current_fx_name = hook
        return output


def _norm(values: Tensor) -> float | None:
    """The Euclidean norm; None of what is not finite."""
    # In float64, in which squares of any float32 add up to something finite.
    norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return norm if math.isfinite(norm) or all_finite(values) else None


def closure_loss(output: Any) -> Tensor:
    """The loss in what a training_step returned; raises RuntimeError where there is none."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise RuntimeError("training_step returned no loss: coded exchange needs the mean loss of every data part.")
    return loss
