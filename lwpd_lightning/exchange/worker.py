"""A worker's side of the exchange: receive a version, compute its codeword, send it, until told to stop.

The coordinator sends a worker its next version only after it has received the last codeword, so the codeword's buffer
can be sent without a copy and written again as soon as the next version is here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.wire import ErrorFeedback, WireFormat
from lwpd_lightning.exchange.coordinator import Contribution
from lwpd_lightning.exchange.header import Header, Op, ProtocolError
from lwpd_lightning.exchange.staging import Staging
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.exchange.transport import Spoke


@dataclass(frozen=True)
class Assignment:
    """Which batch to compute at which version; the model already holds the version's parameters."""

    version: int
    epoch: int
    batch_index: int


class Worker:
    """Answers every published version with one codeword.

    Args:
        spoke: the link to the coordinator.
        worker: this worker's row of the code.
        blocks: layout of the trainable parameters.
        model: the module whose state the coordinator sends.
        wire: how codewords are packed.
        feedback: carries what packing lost into the next codeword; None: it stays lost.
        run_id: 16 bytes that every header of this fit carries.
        timeout_s: longest silence of the coordinator (it validates between updates).
    """

    def __init__(
        self,
        *,
        spoke: Spoke,
        worker: int,
        blocks: BlockMap,
        model: nn.Module,
        wire: WireFormat,
        feedback: ErrorFeedback | None,
        run_id: bytes,
        timeout_s: float,
    ) -> None:
        self._spoke, self._worker, self._blocks, self._wire = spoke, worker, blocks, wire
        self._feedback, self._run_id, self._timeout_s = feedback, run_id, timeout_s
        self._everything = StateLayout.everything(model, blocks.device)
        self._per_version = StateLayout.per_version(model, blocks.device)
        self._staging = Staging(blocks.device)

    def run(self, compute: Callable[[Assignment], Contribution]) -> None:
        """Join, then compute until the coordinator stops the fit; an exception is reported to it and raised.

        Raises:
            CoordinatorLost: the link ended without a word.
        """
        self._post(Op.JOIN, self._everything.digest())
        while True:
            frames = self._spoke.receive(self._timeout_s)
            try:
                header, payload = self._read(frames)
                if header.op is Op.STOP:
                    return
                if header.op is Op.STATE:
                    self._everything.unpack(payload)
                    continue
                self._per_version.unpack(payload)
                self._answer(header, compute(Assignment(header.version, header.epoch, header.batch_index)))
            except BaseException:
                self._post(Op.FAILURE, f"worker {self._worker} failed:\n{traceback.format_exc()}".encode())
                raise

    def _answer(self, asked: Header, contribution: Contribution) -> None:
        codeword = contribution.codeword
        if self._feedback is not None:
            self._feedback.compensate(codeword)
        packed = self._wire.pack(codeword)
        if self._feedback is not None:
            self._feedback.update(codeword, packed)
        body = self._staging.to_host(packed)
        rest = torch.cat([contribution.statistics, torch.tensor(contribution.touched, dtype=torch.uint8)])
        header = Header(
            Op.CODEWORD, self._run_id, self._worker, version=asked.version, epoch=asked.epoch,
            batch_index=asked.batch_index, loss=contribution.loss, compute_s=contribution.compute_s,
            samples=contribution.samples, wire=self._wire.code, elements=self._blocks.block_size,
            sizes=(body.numel(), rest.numel()),
        )  # fmt: skip
        self._spoke.send([header.pack(), body.numpy().data, rest.numpy().data])

    def _read(self, frames: list[memoryview]) -> tuple[Header, torch.Tensor]:
        if len(frames) != 3:
            raise ProtocolError(f"{len(frames)} frames instead of 3")
        header = Header.unpack(bytes(frames[0]), run_id=self._run_id)
        if header.sizes[0] != frames[1].nbytes:
            raise ProtocolError(f"{frames[1].nbytes} bytes where the header says {header.sizes[0]}")
        payload = torch.frombuffer(frames[1], dtype=torch.uint8) if frames[1].nbytes else torch.empty(0)
        return header, payload

    def _post(self, op: Op, body: bytes) -> None:
        header = Header(op, self._run_id, self._worker, sizes=(len(body), 0))
        self._spoke.send([header.pack(), body, b""])
