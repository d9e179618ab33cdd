"""What senders remember of codewords, in checkpoints: written while a fit runs, and taken over where one goes on."""

from __future__ import annotations

import logging
from typing import Any

from lwpd_lightning.coding.sender import Sender
from lwpd_lightning.exchange.beside import Memory
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.update import Update
from lwpd_lightning.rule.membership import listed
from lwpd_lightning.settings import ExchangeSettings

log = logging.getLogger(__name__)

# By worker; only schemes whose senders remember something have it in their checkpoints.
KEY = "lwpd_memories"
# A worker that is asked may be in the midst of a codeword: it may take so many times as long as those of the last
# update, and send what it remembers as slowly as this, in bytes a second.
_CODEWORDS, _SLOWEST = 4, 10e6


class Remembered:
    """Rank 0's memories of one strategy, between a checkpoint that was read and the first update that follows.

    A memory is as large as the model, or as a codeword where the code's rows do not change.

    Args:
        memories: by worker, as a checkpoint has them; None: the fit goes on from none.
    """

    def __init__(self, memories: dict[int, Memory] | None = None) -> None:
        self._memories = memories

    def forget(self) -> None:
        """They are in use by now, or another process' to hand out."""
        self._memories = None

    def say_what_lacks(self, workers: int) -> None:
        """Warn where the fit goes on from a checkpoint that lacks what some of so many workers remembered."""
        if self._memories is None:
            return
        lacking = set(range(workers)) - self._memories.keys()
        if lacking:
            log.warning(
                "The checkpoint lacks the memory of error feedback of workers %s: theirs begins anew, so that this run "
                "does not end with the bits of one that was not interrupted.", listed(lacking),
            )  # fmt: skip

    def restore(self, coordinator: Coordinator, sender: Sender | None, own: int | None) -> None:
        """Give each worker its own back; all are in, and the first version is still to be published.

        Args:
            coordinator: of the exchange that begins.
            sender: rank 0's, which is worker ``own``.
            own: its row; None: a dedicated coordinator has none.
        """
        memories = self._memories or {}
        if sender is not None and own in memories:
            try:
                sender.load_state_dict(memories[own])
            except (KeyError, ValueError) as error:
                log.warning("The checkpoint's memory of error feedback is of another kind, all begins anew: %s", error)
                return
        coordinator.memories.hand_out({worker: kept for worker, kept in memories.items() if worker != own})


def gathered(
    coordinator: Coordinator,
    settings: ExchangeSettings,
    sender: Sender | None,
    own: int | None,
    *,
    nbytes: int,
    last: Update | None,
) -> dict[int, Memory]:
    """What all workers that count remember now, between two updates, by worker.

    Args:
        coordinator: of the exchange under way.
        settings: resolved for the world size.
        sender: rank 0's, which is worker ``own``.
        own: its row; None: a dedicated coordinator has none.
        nbytes: of the model, which no memory is larger than.
        last: the update before; None: there was none.
    """
    computing_s = 0.0 if last is None else last.compute_s
    patience_s = settings.heartbeat_s + _CODEWORDS * computing_s + nbytes / _SLOWEST
    memories = coordinator.memories.gather(coordinator.version, patience_s)
    if sender is not None and own is not None:
        memories[own] = sender.state_dict()
    return dict(sorted(memories.items()))


def taken_from(checkpoint: dict[str, Any]) -> Remembered:
    """Those of a checkpoint, which then holds what Lightning knows of."""
    return Remembered(checkpoint.pop(KEY, {}))
