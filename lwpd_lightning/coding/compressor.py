"""Which pairs of sender and receiver there are, by name: what is made of gradients before they travel, and after."""

from __future__ import annotations

from dataclasses import dataclass

from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.receiver import LinearReceiver, Receiver
from lwpd_lightning.coding.sender import PlainSender, Sender


@dataclass(frozen=True)
class Compressor:
    """A sender, and the receiver that makes gradients of what its codewords add up to.

    Attributes:
        sender: made by every rank that computes codewords.
        receiver: made by every rank.
    """

    sender: type[Sender]
    receiver: type[Receiver]


# Another one is a line here, or, from outside, an entry before the strategy is made, in every process.
COMPRESSORS = {
    "plain": Compressor(PlainSender, LinearReceiver),
    "error_feedback": Compressor(ErrorFeedback, LinearReceiver),
}
