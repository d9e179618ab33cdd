"""A worker's side of the exchange: receive a version, compute its codeword, send it, until told to stop.

The coordinator sends a worker its next version only after it has received the last codeword, so the codeword's buffer
can be sent without a copy and written again as soon as the next version is here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import WireFormat
from lwpd_lightning.exchange.header import Header, Op
from lwpd_lightning.exchange.message import Messages, text
from lwpd_lightning.exchange.staging import Staging
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.exchange.transport import Spoke
from lwpd_lightning.exchange.update import Contribution


@dataclass(frozen=True)
class Assignment:
    """Which batch to compute at which version; the model already holds the version's parameters."""

    version: int
    epoch: int
    batch_index: int
    global_step: int


class Worker:
    """Answers every published version with one codeword.

    Args:
        spoke: the link to the coordinator.
        worker: this worker's row of the code.
        blocks: layout of the trainable parameters.
        model: the module whose state the coordinator sends.
        wire: how codewords are packed.
        parameter_wire: how each version's parameters are packed; None: bit for bit.
        feedback: what ``compute`` made the codeword from, told what of it arrives; None: what packing lost stays lost.
        messages: packs and reads this fit's messages.
        slot: where in shared memory the packed codeword goes; None: it is sent through the link.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        timeout_s: longest wait for the coordinator's answer when joining; later only the link's heartbeat ends it.
    """

    def __init__(
        self,
        *,
        spoke: Spoke,
        worker: int,
        blocks: BlockMap,
        model: nn.Module,
        wire: WireFormat,
        parameter_wire: WireFormat | None,
        feedback: ErrorFeedback | None,
        messages: Messages,
        slot: Tensor | None,
        fingerprint: bytes,
        timeout_s: float,
    ) -> None:
        self._spoke, self._worker, self._blocks, self._wire = spoke, worker, blocks, wire
        self._feedback, self._messages, self._slot, self._timeout_s = feedback, messages, slot, timeout_s
        self._everything = StateLayout.everything(model, blocks.device)
        self._per_version = StateLayout.per_version(model, blocks.device, parameter_wire)
        self._staging = Staging(blocks.device)
        self._fingerprint = fingerprint

    def run(self, compute: Callable[[Assignment], Contribution]) -> None:
        """Join, then compute until the coordinator stops the fit; an exception is reported to it and raised.

        Raises:
            CoordinatorLost: the link ended without a word.
        """
        self._post(Op.JOIN, torch.tensor(list(self._fingerprint), dtype=torch.uint8))
        timeout_s: float | None = self._timeout_s
        while True:
            frames, timeout_s = self._spoke.receive(timeout_s), None
            try:
                header, payload, _ = self._messages.read(frames)
                if header.op is Op.STOP:
                    return
                if header.op is Op.STATE:
                    self._everything.unpack(payload)
                    continue
                self._per_version.unpack(payload)
                assigned = Assignment(header.version, header.epoch, header.batch_index, header.global_step)
                self._answer(header, compute(assigned))
            except BaseException:
                self._post(Op.FAILURE, text(f"worker {self._worker} failed:\n{traceback.format_exc()}"))
                raise

    def _answer(self, asked: Header, contribution: Contribution) -> None:
        packed = self._wire.pack(contribution.codeword)
        if self._feedback is not None:
            self._feedback.settle(self._wire.unpack(packed, self._blocks.block_size))
        if self._slot is None:
            packed = self._staging.to_host(packed)
        elif packed.data_ptr() != self._slot.data_ptr():
            packed = self._slot.copy_(packed)
        touched = torch.tensor(contribution.touched, dtype=torch.uint8)
        header = Header(
            Op.CODEWORD, self._messages.run_id, self._worker, asked.version, asked.epoch, asked.batch_index,
            contribution.loss, contribution.compute_s, contribution.samples, self._wire.code, self._blocks.block_size,
        )  # fmt: skip
        self._spoke.send(self._messages.pack(header, packed, torch.cat([contribution.statistics, touched])))

    def _post(self, op: Op, payload: Tensor) -> None:
        self._spoke.send(self._messages.pack(Header(op, self._messages.run_id, self._worker), payload))
