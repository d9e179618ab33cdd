"""Where the ranks of a fit meet, and what each of them sets up as all others do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from lwpd_lightning.coding import BlockMap, Code
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.compute import CodewordComputation
from lwpd_lightning.data import CodedLoader, derive_seed
from lwpd_lightning.exchange.reduction import Ranks, Reduction, SharedMemory, parts_bytes
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.links.arena import Arena
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import Payload
from lwpd_lightning.settings import ExchangeSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl

ENV_KEY = "LWPD_RUN_KEY"
ENV_FIT = "LWPD_FIT"
ENV_PARENT = "LWPD_PARENT"

_HEADROOM_BYTES = 1 << 20  # header, layout digests, tracebacks
_LEAST_WINDOW, _LONGEST_WINDOW = 2, 64


@dataclass(frozen=True)
class Meeting:
    """Where and under which key the ranks of a fit meet; forked ones also by what memory.

    Attributes:
        run_key: the run's secret.
        host: address of the store.
        port: its port.
        generation: which fit of the run it is.
        segment: which exchange of the fit: what is trained may change.
        arena: memory shared with forked workers.
        memory: what of it codewords and decoded gradients lie in.
    """

    run_key: RunKey
    host: str
    port: int
    generation: int
    segment: int = 0
    arena: Arena | None = None
    memory: SharedMemory | None = None

    @cached_property
    def messages(self) -> Messages:
        """Packs and reads the messages of the fit."""
        return Messages(self.run_key.run_id(self.generation, self.segment), self.arena)

    def with_memory(self, settings: ExchangeSettings, blocks: BlockMap) -> Meeting:
        """The meeting with memory for all that travels between rank 0 and its forks."""
        code = settings.code
        assert code is not None
        codeword = settings.wire(blocks.dtype, blocks.device).nbytes(blocks.block_size)
        update = parts_bytes(blocks, code, settings.rows, settings.update_wire(blocks.dtype))
        updates = window(blocks, settings)
        arena = Arena([codeword] * code.n + [updates * update, torch.int64.itemsize])
        codewords = [arena.take(codeword) for _ in range(code.n)]
        parts = arena.take(updates * update).view(updates, update)
        memory = SharedMemory(codewords, parts, newest=arena.take(torch.int64.itemsize).view(torch.int64))
        return replace(self, arena=arena, memory=memory)

    def environment(self, node_rank: int, local_rank: int) -> dict[str, str]:
        """What a process that reruns the job must find in its environment to become this worker."""
        return {
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            "NODE_RANK": str(node_rank),
            "LOCAL_RANK": str(local_rank),
            ENV_KEY: self.run_key.hex(),
            ENV_FIT: str(self.generation),
            ENV_PARENT: str(os.getpid()),
        }


def fingerprint(module: nn.Module, blocks: BlockMap, code: Code, loader: CodedLoader) -> bytes:
    """32 bytes that the ranks of one fit share and other fits do not: shapes, code, batches and seed."""
    layout = StateLayout.everything(module, blocks.device).digest()
    # Rounded: another processor's solver may differ in the last bits of a gradient_code.
    generator = (code.generator * 1e6).round().long().numpy().tobytes()
    return hashlib.sha256(layout + generator + loader.fingerprint()).digest()


def max_message_bytes(module: nn.Module, blocks: BlockMap) -> int:
    """No honest frame of this run is longer, in either direction."""
    return StateLayout.everything(module, blocks.device).nbytes + _HEADROOM_BYTES


def window(blocks: BlockMap, settings: ExchangeSettings) -> int:
    """Updates that a late worker may find waiting when it is done: as many as take the room of half a float32 model."""
    update = settings.update_wire(blocks.dtype).nbytes(settings.rows * blocks.block_size)
    return max(_LEAST_WINDOW, min(_LONGEST_WINDOW, 2 * blocks.numel // update))


def computation(
    trainer: pl.Trainer,
    settings: ExchangeSettings,
    meeting: Meeting,
    worker: int,
    blocks: BlockMap,
    feedback: ErrorFeedback | None,
    seed: int,
) -> CodewordComputation:
    """What computes the codewords of ``worker``, wherever it runs."""
    assert settings.code is not None
    return CodewordComputation(
        trainer,
        settings.code,
        worker,
        blocks,
        seed,
        wire=settings.wire(blocks.dtype, blocks.device, derive_seed(seed, worker)),
        slot=meeting.memory.codewords[worker] if meeting.memory is not None else None,
        feedback=feedback,
    )


def error_feedback(settings: ExchangeSettings, worker: int | None, blocks: BlockMap) -> ErrorFeedback | None:
    """The memory of ``worker``'s codewords, where the settings want one and there are any."""
    assert settings.code is not None
    return ErrorFeedback(settings.code, worker, blocks) if settings.error_feedback and worker is not None else None


def reduction(
    blocks: BlockMap,
    settings: ExchangeSettings,
    meeting: Meeting,
    worker: int | None,
    send: Callable[[int, Sequence[Payload]], None],
    feedback: ErrorFeedback | None,
    seed: int,
) -> Reduction:
    """The share of one rank in adding up; ``worker``: its row of the code, None for a dedicated coordinator."""
    code = settings.code
    assert code is not None
    return Reduction(
        ranks=Ranks(worker, None if settings.dedicated_coordinator else 0, set(range(code.n))),
        blocks=blocks,
        code=code,
        wire=settings.wire(blocks.dtype, blocks.device),
        update_wire=settings.update_wire(blocks.dtype, derive_seed(seed, code.n, -1 if worker is None else worker)),
        messages=meeting.messages,
        send=send,
        memory=meeting.memory,
        feedback=feedback,
        along_direction=settings.along_direction,
    )


def queued(blocks: BlockMap, settings: ExchangeSettings) -> int:
    """Messages that may wait for a rank: an update makes four for it on the busiest link."""
    return 4 * window(blocks, settings) + 8
