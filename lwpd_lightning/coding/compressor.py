"""Which pairs of sender and receiver there are, by name: what is made of gradients before they travel, and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.metric import Metric
from lwpd_lightning.coding.receiver import LinearReceiver, Receiver
from lwpd_lightning.coding.rotation import Rotation
from lwpd_lightning.coding.sender import PlainSender, Sender
from lwpd_lightning.coding.whitened import WhitenedReceiver, WhitenedSender


@dataclass(frozen=True)
class Compressor:
    """A sender, and the receiver that makes gradients of what its codewords add up to.

    Attributes:
        sender: made by every rank that computes codewords.
        receiver: made by every rank.
    """

    sender: type[Sender]
    receiver: type[Receiver]

    def make(
        self,
        code: Code,
        worker: int | None,
        blocks: BlockMap,
        *,
        one_version: bool,
        optimizer: torch.optim.Optimizer,
        seed: int,
        into: Tensor | None = None,
    ) -> tuple[Sender | None, Receiver]:
        """What one rank holds; a compressor whose two sides know of each other says here how.

        Args:
            code: the code.
            worker: the rank's row of it; None: it has none, and no sender.
            blocks: layout of the trainable parameters.
            one_version: whether all codewords of an update are of its own version.
            optimizer: of the parameters, whose state is the same on all ranks at one version.
            seed: of the run, the same on all ranks.
            into: where a codeword that needs no packing is to lie (`Sender`).
        """
        sender = None if worker is None else self.sender(code, worker, blocks, into)
        return sender, self.receiver(code, blocks, one_version)


@dataclass(frozen=True)
class Whitening(Compressor):
    """Codewords that are rotated, and in the optimizer's metric before.

    Attributes:
        whitens: whether the metric is the optimizer's; else it is 1.
    """

    sender: type[WhitenedSender] = WhitenedSender
    receiver: type[WhitenedReceiver] = WhitenedReceiver
    whitens: bool = True

    def make(
        self,
        code: Code,
        worker: int | None,
        blocks: BlockMap,
        *,
        one_version: bool,
        optimizer: torch.optim.Optimizer,
        seed: int,
        into: Tensor | None = None,
    ) -> tuple[Sender | None, Receiver]:
        """Both sides with one metric and one rotation."""
        metric = Metric(blocks, optimizer if self.whitens else None)
        rotation = Rotation(blocks.block_size, seed, blocks.dtype, blocks.device)
        sender = None if worker is None else self.sender(code, worker, blocks, metric, rotation, into)
        return sender, self.receiver(code, blocks, one_version, metric, rotation)


# Another one is a line here, or, from outside, an entry before the strategy is made, in every process.
COMPRESSORS: dict[str, Compressor] = {
    "plain": Compressor(PlainSender, LinearReceiver),
    "error_feedback": Compressor(ErrorFeedback, LinearReceiver),
    "rotated": Whitening(whitens=False),
    "whitened": Whitening(),
}
