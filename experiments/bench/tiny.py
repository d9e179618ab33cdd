"""Ranks that exchange updates of a tiny model and compute nothing: what is measured, or tried, is the exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lwpd_lightning.coding import uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksums
from lwpd_lightning.exchange.update import Contribution, How, Logged, Step, Update
from lwpd_lightning.exchange.worker import Assignment, Worker
from lwpd_lightning.links.message import EMPTY, Messages
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.doubts import Doubts
from lwpd_lightning.rule.membership import Membership

_RUN_ID, _FINGERPRINT = bytes(16), bytes(32)
_LEARNING_RATE = 0.1


class TinyRank:
    """A tiny model and a rank's share in adding up; as a worker's replica, it computes nothing.

    Args:
        worker: the rank's row of `uncoded(ranks)`.
        ranks: how many there are, rank 0 counted.
        send: takes a message to the rank of an address.
    """

    changed = False
    logged: Mapping[str, Logged] = {}  # that each codeword brings with it

    def __init__(self, worker: int, ranks: int, send: Callable[..., None]) -> None:
        torch.manual_seed(0)
        self.code, wire = uncoded(ranks), wire_format("float32")
        self.model = nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=_LEARNING_RATE)
        self.precision = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
        self.messages = Messages(_RUN_ID, arena=None)
        self.blocks = BlockMap(list(self.model.parameters()), self.code.blocks)
        among = Ranks(worker, 0, set(range(ranks)))
        sums = MessageSums(among, self.blocks.block_size, wire, wire, self.messages, send)
        self.reduction = Reduction(self.blocks, sums, None, LinearReceiver(self.code, self.blocks, one_version=False))
        values = torch.full((self.blocks.block_size,), 1e-3)
        self._codeword, self._norm = Codeword(values, wire.pack(values)), float(values.norm())
        self._checksums = Checksums(self.model, self.blocks.parameters)
        self._step: Step | None = None  # rank 0's last

    def worker(self, links: Any, timeout_s: float) -> Worker:
        """The worker that this rank is, over its links."""
        return Worker(
            links=links, reduction=self.reduction, model=self.model, optimizer=self.optimizer,
            precision=self.precision, replica=self, messages=self.messages, fingerprint=_FINGERPRINT,
            timeout_s=timeout_s,
        )  # fmt: skip

    def coordinator(
        self,
        hub: Any,
        wait_for: int,
        *,
        grace_s: float,
        join_s: float,
        min_workers: int,
        returns: bool,
        **settings: Any,
    ) -> Coordinator:
        """What rank 0 decides with.

        Args:
            hub: its links to the workers.
            wait_for: K.
            grace_s: as of `Membership`.
            join_s: the same.
            min_workers: as of `Admission`.
            returns: the same.
            settings: other arguments of `Coordinator`.
        """
        rule = ArrivalRule(self.code, wait_for, own=0)
        device, ranks = self.blocks.device, self.reduction.ranks
        publication = Publication(hub, self.messages, self.model, device, self.optimizer, self.precision)
        members = Membership(range(1, self.code.n), own=0, grace_s=grace_s, join_s=join_s, doubts=Doubts(join_s))
        admission = Admission(
            hub, members, publication, rule, ranks, messages=self.messages, fingerprint=_FINGERPRINT,
            min_workers=min_workers, returns=returns, exited=lambda worker, wait_s: None, fence=lambda worker: None,
        )  # fmt: skip
        return Coordinator(
            hub=hub, admission=admission, publication=publication, rule=rule, reduction=self.reduction,
            model=self.model, messages=self.messages, first_version=0, **settings,
        )  # fmt: skip

    def update(self, coordinator: Coordinator) -> Update:
        """Make the next update, on rank 0."""
        how = How.FIRST if self._step is None else How.AHEAD
        coordinator.publish(0, 0, coordinator.version, how, step=self._step)
        coordinator.arrived(self._checksums.take())
        coordinator.contribute(*self._computed(coordinator.version))
        update = coordinator.collect()
        coordinator.deliver()
        self.optimizer.step()
        self._step = Step(coordinator.decided, [{"lr": _LEARNING_RATE}])
        return update

    def _computed(self, version: int) -> tuple[Codeword, Contribution]:
        return self._codeword, Contribution(version, [True, True], 0.0, 1, 0.0, EMPTY, self.logged, norm=self._norm)

    # A replica, which has no hooks and no attributes.

    def compute(self, assignment: Assignment, settle: Callable[[], None]) -> tuple[Codeword, Contribution]:
        """The same codeword each time."""
        settle()
        return self._computed(assignment.version)

    def step(self, at: Assignment) -> None:
        """Make the optimizer's step."""
        self.optimizer.step()

    def enter(self, assignment: Assignment, validate: Callable[[], None] | None = None) -> None:
        """Nothing is to be done."""

    def validated(self) -> None:
        """There is no validation."""

    def skip(self, at: Assignment) -> None:
        """The same."""

    def steer(self, attributes: dict[str, object]) -> None:
        """The same."""
