"""What rank 0 makes of the codewords that it hears of: which wait, which count, what was decided, what an update was.

Knows no links: whoever drives it tells it what came, and sends what it decides.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.state import Checksum, StateLayout
from lwpd_lightning.exchange.update import Contribution, Logged, NotFinite, Update, from_json
from lwpd_lightning.links.header import HEADER_BYTES, UNMEASURED, Header, Op, ProtocolError
from lwpd_lightning.links.message import words
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.rule.arrivals import Arrival, ArrivalRule
from lwpd_lightning.rule.delays import Delays
from lwpd_lightning.rule.membership import listed
from lwpd_lightning.rule.norms import NormGuard

log = logging.getLogger(__name__)

# Versions whose checksum is kept: a codeword of an older one, were it to count, is taken for that of other parameters.
_REMEMBERED = 4096
# Bytes of logged values that one codeword may bring.
_MOST_LOGGED = 1 << 16


class Agreement(Enum):
    """Whether a codeword was computed where rank 0 was."""

    SAME = auto()
    MISSED_HOOKS = auto()  # what its hooks would have done (a moving average) in a batch that it skipped; it counts
    DIVERGED = auto()  # it does not count
    TOO_LARGE = auto()  # nor does this one, wherever it was computed


@dataclass
class _Open:
    """What has been gathered for the open update."""

    version: int
    epoch: int
    batch_index: int
    counted: dict[int, Contribution] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)  # those that were decided on
    decision: Decision | None = None
    dropped: int = 0
    resyncs: int = 0
    refused: list[int] = field(default_factory=list)
    too_large: bool = False  # some of these are, and the others not finite


class Tally:
    """The codewords of one exchange, as rank 0 counts them.

    Args:
        rule: which codewords count.
        reduction: rank 0's share in adding up.
        model: the module that is trained.
        guard: which codewords are too large.

    Attributes:
        open: the open update; what was gathered of the last one while none is.
    """

    def __init__(
        self, rule: ArrivalRule, reduction: Reduction, model: nn.Module, guard: NormGuard | None = None
    ) -> None:
        self._rule, self._reduction, self._guard = rule, reduction, guard or NormGuard(None)
        self._tensors = len(reduction.blocks.parameters)
        self._statistics = StateLayout.statistics(model, reduction.blocks.device)
        self._ready: dict[int, Contribution] = {}  # codewords that may count in this update or a later one
        self._delays = Delays()
        self._decisions = self._bytes_up = 0
        self._checksums: dict[int, Checksum] = {}  # of the model at versions whose codewords may still come
        self.open = _Open(-1, 0, 0)

    @property
    def decision(self) -> Decision | None:
        """Who counts in the open update; None: that is not decided, or not any more."""
        return self.open.decision

    def begin(self, version: int, epoch: int, batch_index: int, *, void_older: bool) -> None:
        """Open the update that starts from a version; ``void_older``: nothing computed before it may count."""
        self.open = _Open(version, epoch, batch_index)
        self._rule.open(version, time.monotonic(), void_older=void_older)

    def published(self, workers: set[int]) -> None:
        """The open update's version was sent to these workers: those without a codeword that waits begin with it."""
        holding = {worker for worker, kept in self._ready.items() if kept.version >= self._rule.oldest}
        self._delays.published(self.open.version, workers - holding, time.monotonic())

    def arrived(self, checksum: Checksum) -> None:
        """Rank 0's model is at the open update's version: what it is computed at has this checksum."""
        version = self.open.version
        self._checksums[version] = checksum
        self._checksums.pop(version - _REMEMBERED, None)
        self.count_ready()

    # What comes.

    def contribute(self, codeword: Codeword, contribution: Contribution) -> None:
        """Count rank 0's own codeword, which stays as it is until the update is closed."""
        assert self._rule.own is not None
        self._rule.observe(self._rule.own, contribution.compute_s)
        if not contribution.finite:
            self.refuse(self._rule.own, self.open.version)
            return
        if self._too_large(self._rule.own, contribution):
            self._reduction.forget()
            return
        self._reduction.offer(codeword)
        self._count(self._rule.own, contribution)

    def observe(self, header: Header, now: float) -> None:
        """A worker has computed a codeword, whatever becomes of it."""
        if not 0 <= header.compute_s < math.inf:
            raise ProtocolError(f"{header.op.name} after {header.compute_s} s")
        self._rule.observe(header.worker, self._delays.of(header.worker, header.version, header.compute_s, now))

    def ready(self, header: Header, payload: Tensor, rest: Tensor) -> Agreement:
        """Count a worker's codeword, now or in a later update, where it was computed where rank 0 was.

        Raises:
            ProtocolError: for a message that no honest worker sends.
        """
        contribution = self._contribution(header, payload, rest)
        self._bytes_up += HEADER_BYTES + payload.numel() + rest.numel()
        agreement = self._agreement(header) if header.version >= self._rule.oldest else Agreement.SAME
        if agreement is not Agreement.DIVERGED and self._too_large(header.worker, contribution):
            return Agreement.TOO_LARGE
        if agreement is not Agreement.DIVERGED:
            self._ready[header.worker] = contribution
            self._count(header.worker, contribution)
        return agreement

    def late(self) -> None:
        """A worker's codeword was too late before it left."""
        self.open.dropped += 1

    def refuse(self, worker: int, version: int) -> None:
        """A worker's codeword holds what is no finite number: it goes nowhere, and nobody waits for it."""
        log.warning("Worker %d's codeword of version %d is not finite: it does not count", worker, version)
        self._refuse(worker, version)

    def _refuse(self, worker: int, version: int) -> None:
        self.open.refused.append(worker)
        if version == self.open.version and self.open.decision is None:
            self._rule.refuse(worker)

    def _too_large(self, worker: int, contribution: Contribution) -> bool:
        """Whether a codeword is refused for its norm."""
        norm = self._norm(worker, contribution)
        if self._guard.admits(norm):
            return False
        log.warning(
            "Worker %d's codeword of version %d is too large: it does not count (norm %.4g in update %d, at most %.4g)",
            worker, contribution.version, norm, self.open.version, self._guard.bound,
        )  # fmt: skip
        self.open.too_large = True
        self._refuse(worker, contribution.version)
        return True

    def _norm(self, worker: int, contribution: Contribution) -> float | None:
        """A codeword's norm in units of its row's."""
        if contribution.norm is None:
            return None
        row = float(self._rule.code.at(contribution.version).coefficients(worker).norm())
        return contribution.norm / row if row else contribution.norm

    def do_without(self, workers: set[int]) -> bool:
        """Whether the open update can be made without these; if so, what they have ready may count in a later one."""
        if not workers or not self._rule.spares(workers):
            return False
        for worker in workers:
            if (contribution := self.open.counted.pop(worker, None)) is not None and worker in self._rule.live:
                self._ready[worker] = contribution
            self._rule.refuse(worker)
        return True

    def lose(self, worker: int) -> None:
        """A worker is an erasure: whatever it had ready is lost with it."""
        self._ready.pop(worker, None)
        self._delays.forget(worker)

    def count_ready(self) -> None:
        """Count what waits, where it counts by now."""
        for worker, contribution in list(self._ready.items()):
            self._count(worker, contribution)

    def _count(self, worker: int, contribution: Contribution) -> None:
        if self.open.decision is not None:
            return  # it may count in the next one
        if self._rule.counts(worker, contribution.version, time.monotonic()):
            self.open.counted[worker] = contribution
            self._guard.counted(self._norm(worker, contribution))
            self._ready.pop(worker, None)
        elif contribution.version < self._rule.oldest:
            self._ready.pop(worker, None)  # the worker knows by the version's header, and goes on
            self.open.dropped += 1

    def _contribution(self, header: Header, payload: Tensor, rest: Tensor) -> Contribution:
        if payload.numel() != self._statistics.nbytes or not 0 <= rest.numel() - self._tensors <= _MOST_LOGGED:
            raise ProtocolError(f"{Op.READY.name} with {payload.numel()} and {rest.numel()} bytes")
        if header.version > self.open.version:
            raise ProtocolError(f"{Op.READY.name} of version {header.version}, which is to come")
        if not (header.norm >= 0 or header.norm == UNMEASURED):
            raise ProtocolError(f"{Op.READY.name} of norm {header.norm}")
        return Contribution(
            version=header.version,
            touched=[has != 0 for has in rest[: self._tensors].tolist()],
            loss=header.loss,
            samples=header.samples,
            compute_s=header.compute_s,
            statistics=payload,
            logged=_logged(rest[self._tensors :]),
            norm=None if header.norm == UNMEASURED else header.norm,
        )

    def _agreement(self, header: Header) -> Agreement:
        mine = self._checksums.get(header.version)
        skipped = header.batch_index > 0
        if mine is None or mine.trainable != header.checksum:
            return Agreement.DIVERGED
        if mine.rest == header.rest:
            return Agreement.SAME
        return Agreement.MISSED_HOOKS if skipped else Agreement.DIVERGED

    # What is decided.

    def decide(self) -> Decision:
        """Who counts in the open update, with which weight.

        Raises:
            NotFinite: too few codewords of this update are finite, and not too large.
        """
        self._refuse_too_few_finite()
        update, rule = self.open, self._rule
        decoding = rule.decide(time.monotonic())
        # By number, not by who was first: the same workers then add up the same slices, to the same bits. Rank 0, which
        # has enough to do, comes last, and adds up only where nobody else can.
        arrivals = sorted(rule.arrivals, key=lambda arrival: (arrival.worker == rule.own, arrival.worker))
        coefficients = torch.tensor([decoding.coefficients[a.worker] for a in arrivals], dtype=torch.float64)
        touched = zip(*(update.counted[arrival.worker].touched for arrival in arrivals), strict=True)
        self._decisions += 1
        update.arrivals = arrivals
        update.decision = Decision(
            number=self._decisions,
            version=update.version,
            workers=[arrival.worker for arrival in arrivals],
            reducers=max(1, sum(arrival.worker != rule.own for arrival in arrivals)),
            weights=self._reduction.receiver.weights(coefficients, update.version),
            touched=[any(column) for column in touched],
        )
        return update.decision

    def needs(self, worker: int) -> bool:
        """Whether something of a worker is needed for what was decided, and is not there."""
        decision = self.open.decision
        return decision is not None and worker in decision.workers and not self._reduction.complete(decision.number)

    def reopen(self) -> None:
        """Who counts is to be decided again, with those that came after the decision: nobody else may come."""
        self.open.decision = None
        self.count_ready()

    @property
    def holding_up(self) -> tuple[int | None, list[int]]:
        """The decision that waits to be carried out, None before there is one, and for whom."""
        if self.open.decision is None:
            return None, self._rule.awaited
        return self.open.decision.number, self._reduction.missing(self.open.decision.number)

    @property
    def awaited(self) -> str:
        """The same, in words."""
        number, workers = self.holding_up
        named = listed(workers)
        return f"codewords of workers {named}" if number is None else f"workers {named} to add codewords up"

    def close(self, *, wait_s: float, others: int, bytes_down: int) -> Update:
        """End the open update, whose gradient has been decoded; its record.

        Args:
            wait_s: how long rank 0 waited for it, in seconds.
            others: workers beside rank 0's that are in.
            bytes_down: what publishing it took.
        """
        update, rule, decision = self.open, self._rule, self.open.decision
        assert decision is not None
        rule.close()
        counted = [update.counted[arrival.worker] for arrival in update.arrivals]
        if self._statistics.nbytes:
            self._statistics.average([contribution.statistics for contribution in counted])
        if rule.own is not None:
            self._reduction.withdraw()
        up, down = self._reduction.traffic(decision.number, 1 + others)
        bytes_up, self._bytes_up = self._bytes_up + up, 0
        return Update(
            version=update.version,
            epoch=update.epoch,
            batch_index=update.batch_index,
            arrivals=update.arrivals,
            wait_for=rule.wait_for,
            loss=sum(contribution.loss for contribution in counted) / len(counted),
            samples=counted[0].samples * len({p for a in update.arrivals for p in rule.code.parts(a.worker)}),
            wait_s=wait_s,
            compute_s=sum(contribution.compute_s for contribution in counted) / len(counted),
            bytes_up=bytes_up,
            bytes_down=bytes_down + down,
            uploads=len(counted) - 1,  # each position is added up by one that has its own of it
            code=rule.code,
            dropped=update.dropped,
            refused=update.refused,
            resyncs=update.resyncs,
            live=len(rule.live),
            inclusion=[rule.inclusion_rate(worker) for worker in range(rule.code.n)],
            logged=[contribution.logged for contribution in counted],
        )

    def _refuse_too_few_finite(self) -> None:
        rule, update = self._rule, self.open
        least = rule.code.recovery_threshold if rule.decoder == "exact" else 1
        if update.refused and len(rule.counted) < (least or 1):
            how = f"not finite or larger than {self._guard.bound:.4g}" if update.too_large else "not finite"
            raise NotFinite(
                f"update {update.version} cannot be made: the codewords of workers {listed(set(update.refused))} are "
                f"{how}, and {len(rule.counted)} are left; lower the learning rate, clip gradients, or look for "
                "what divides by zero."
            )


def _logged(rest: Tensor) -> dict[str, Logged]:
    """The values that a worker's training step logged; here, where it can still be said whose they are."""
    try:
        return from_json(words(rest))
    except ValueError as error:
        raise ProtocolError(f"{Op.READY.name} with {error}") from error
