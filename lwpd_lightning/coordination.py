"""What rank 0 decides with in one exchange, built from the strategy's settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.rule.adaptive_wait import AdaptiveWait
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.doubts import Doubts
from lwpd_lightning.rule.membership import Membership
from lwpd_lightning.rule.norms import NormGuard
from lwpd_lightning.rule.patience import Patience
from lwpd_lightning.seat import Seat
from lwpd_lightning.settings import ExchangeSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl


def coordinator_of(
    trainer: pl.Trainer,
    settings: ExchangeSettings,
    seat: Seat,
    hub: Hub,
    *,
    own: int | None,
    lost: Sequence[int],
    exited: Callable[[int, float], str | None],
    fence: Callable[[int], None],
    start_again: Callable[[int], bool],
) -> Coordinator:
    """The coordinator of an exchange.

    Args:
        trainer: the trainer.
        settings: resolved for the world size.
        seat: rank 0's.
        hub: its links to the workers.
        own: the worker that rank 0 is too; None for a dedicated coordinator.
        lost: workers that earlier exchanges of the fit have lost, and that nothing has started anew.
        exited: how a worker's process ended (`Admission`).
        fence: keeps a lost worker's process from touching shared memory (`Admission`).
        start_again: starts another process of a lost worker (`Admission`).
    """
    rule, reduction, workers = arrival_rule(settings, own), seat.reduction(hub.send), workers_beside(settings, own)
    heartbeat_s = settings.heartbeat_s
    members = Membership(workers, own, heartbeat_s / 6, join_s=12 * heartbeat_s, doubts=Doubts(heartbeat_s))
    for worker in lost:
        members.lose(worker)
        rule.lose(worker)
        reduction.ranks.workers.discard(worker)
    module, device = trainer.lightning_module, seat.blocks.device
    publication = Publication(hub, seat.messages, module, device, trainer.optimizers[0], trainer.precision_plugin)
    admission = Admission(
        hub,
        members,
        publication,
        rule,
        reduction.ranks,
        messages=seat.messages,
        fingerprint=seat.fingerprint,
        min_workers=settings.fewest_workers,
        returns=not reduction.shares_memory,
        exited=exited,
        fence=fence,
        start_again=start_again if settings.restart_workers else None,
    )
    return Coordinator(
        hub=hub,
        admission=admission,
        publication=publication,
        rule=rule,
        reduction=reduction,
        model=module,
        messages=seat.messages,
        first_version=trainer.global_step,
        timeout_s=settings.timeout_s,
        patience=Patience(settings.update_timeout_s, settings.timeout_s),
        guard=NormGuard(settings.norm_limit),
    )


def workers_beside(settings: ExchangeSettings, own: int | None) -> list[int]:
    """The workers that are not rank 0."""
    assert settings.code is not None
    return [worker for worker in range(settings.code.n) if worker != own]


def arrival_rule(settings: ExchangeSettings, own: int | None) -> ArrivalRule:
    """Which codewords count; rank 0's ``own`` always does."""
    assert settings.code is not None
    least, most = settings.waits
    adaptive = None
    if settings.wait_for == "adaptive":
        adaptive = AdaptiveWait(
            settings.code,
            least,
            most,
            own=own,
            feedback=settings.remembers,
            decoder=settings.decoder,
            max_staleness=0 if settings.stale == "drop" else settings.max_staleness,
        )
    return ArrivalRule(
        settings.code,
        most,
        decoder=settings.decoder,
        stale=settings.stale,
        max_staleness=settings.max_staleness,
        own=own,
        feedback=settings.remembers,
        adaptive=adaptive,
    )
