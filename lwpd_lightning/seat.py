"""What a rank holds during an exchange, built in the same way on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lwpd_lightning.coding import BlockMap
from lwpd_lightning.compute import CodewordComputation
from lwpd_lightning.data import CodedLoader, derive_seed
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import Payload
from lwpd_lightning.meeting import Meeting
from lwpd_lightning.reduction.reduction import Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks, SharedMemory, SharedSums, Sums
from lwpd_lightning.settings import ExchangeSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl

_HEADROOM_BYTES = 1 << 20  # header, layout digests, tracebacks
_LEAST_WINDOW, _LONGEST_WINDOW = 2, 64


class Seat:
    """One rank's place in an exchange.

    Args:
        settings: resolved for the world size.
        meeting: where and under which key its ranks meet.
        worker: the rank's row of the code; None for a dedicated coordinator.
        module: the module that is trained, as it is now.
        optimizer: of its parameters.
        loader: of the training data; for its seed and its kind.
        memory: shared with all other ranks; None: slices and sums travel as messages.

    Attributes:
        blocks: layout of the trainable parameters.
        wire: how this rank packs its codewords, and reads others'.
        sum_wire: how this rank packs what it adds up, and reads what others did.
        receiver: makes gradients of decoded rows.
        sender: makes this rank's codewords; None where it has none.
        messages: packs and reads this exchange's messages.
        fingerprint: 32 bytes that the ranks of one exchange share and others do not: shapes, code, batches and seed.
        max_message_bytes: no honest frame is longer, in either direction.
        queued: messages that may wait for a rank.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        meeting: Meeting,
        worker: int | None,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: CodedLoader,
        memory: SharedMemory | None = None,
    ) -> None:
        code = settings.code
        assert code is not None
        self._settings, self._code, self._worker = settings, code, worker
        self._memory, self._seed = memory, loader.seed
        me = -1 if worker is None else worker
        self.blocks = blocks = BlockMap(module.parameters(), code.blocks)
        self.wire = settings.wire(blocks.dtype, blocks.device, derive_seed(self._seed, me))
        self.sum_wire = settings.sum_wire(blocks.dtype, derive_seed(self._seed, code.n, me))
        self.sender, self.receiver = settings.made_by.make(
            code,
            worker,
            blocks,
            one_version=settings.one_version,
            optimizer=optimizer,
            seed=self._seed,
            into=self._in_place,
        )
        self.messages = Messages(meeting.run_id, None if memory is None else memory.arena)
        layout = StateLayout.everything(module, blocks.device)
        # Rounded: another processor's solver may differ in the last bits of a gradient_code.
        generator = (code.generator * 1e6).round().long().numpy().tobytes()
        self.fingerprint = hashlib.sha256(layout.digest() + generator + loader.fingerprint()).digest()
        self.max_message_bytes = layout.nbytes + _HEADROOM_BYTES
        update = self.sum_wire.nbytes(self.receiver.rows * blocks.block_size)
        self.queued = 4 * _window(blocks, update) + 8  # an update makes four for a rank on the busiest link

    @property
    def peers(self) -> list[int]:
        """The workers to which this worker has links of its own, beside the one to rank 0."""
        known = {self._worker} if self._settings.dedicated_coordinator else {self._worker, 0}
        return [other for other in range(self._code.n) if other not in known and self._memory is None]

    @property
    def _slot(self) -> Tensor | None:
        """Where in shared memory this rank's packed codewords lie."""
        return None if self._memory is None or self._worker is None else self._memory.codewords[self._worker]

    @property
    def _in_place(self) -> Tensor | None:
        """The same for codewords that need no packing."""
        slot, dtype = self._slot, self.blocks.dtype
        return slot.view(dtype) if slot is not None and self.wire.carries(dtype) else None

    def computation(self, trainer: pl.Trainer) -> CodewordComputation | None:
        """What computes this rank's codewords; None where it has none."""
        if self._worker is None or self.sender is None:
            return None
        return CodewordComputation(
            trainer, self._code, self._worker, self.blocks, self.sender, self._seed, wire=self.wire, slot=self._slot,
            measures=self._settings.max_codeword_norm is not None,
        )  # fmt: skip

    def reduction(self, send: Callable[[int, Sequence[Payload]], None]) -> Reduction:
        """This rank's share in adding up; ``send`` takes a message to the rank of an address."""
        coordinator = None if self._settings.dedicated_coordinator else 0
        ranks = Ranks(self._worker, coordinator, set(range(self._code.n)))
        wires = self.wire, self.sum_wire
        size, memory = self.blocks.block_size, self._memory
        sums: Sums
        if memory is None:
            sums = MessageSums(ranks, size, *wires, self.messages, send)
        else:
            sums = SharedSums(ranks, size, *wires, self.messages, send, memory)
        return Reduction(self.blocks, sums, self.sender, self.receiver)


def shared_memory(settings: ExchangeSettings, module: nn.Module) -> SharedMemory:
    """Memory for all that travels between rank 0 and its forks; taken before they are forked."""
    code = settings.code
    assert code is not None
    blocks = BlockMap(module.parameters(), code.blocks)
    update = settings.sum_wire(blocks.dtype).nbytes(settings.rows * blocks.block_size)
    codeword = settings.wire(blocks.dtype, blocks.device).nbytes(blocks.block_size)
    return SharedMemory.take(code.n, codeword=codeword, update=update, window=_window(blocks, update))


def _window(blocks: BlockMap, update: int) -> int:
    """Updates that a late worker may find waiting when it is done: as many as take the room of half a float32 model.

    Args:
        blocks: layout of the trainable parameters.
        update: bytes of a packed decoded gradient.
    """
    return max(_LEAST_WINDOW, min(_LONGEST_WINDOW, 2 * blocks.numel // update))
