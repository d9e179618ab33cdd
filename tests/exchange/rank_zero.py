"""Rank 0 of an exchange whose workers are threads of the test: none of their processes ends or is fenced."""

from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.rule.doubts import Doubts
from lwpd_lightning.rule.membership import Membership
from lwpd_lightning.rule.patience import Patience
from tests.links.links import DEADLINE_S

FINGERPRINT = bytes(32)


def coordinator(hub, publication, rule, reduction, *, model, messages, timeout_s=DEADLINE_S, first_version=0):
    members = Membership(range(1, rule.code.n), own=0, grace_s=0.5, join_s=DEADLINE_S, doubts=Doubts(DEADLINE_S))
    admission = Admission(
        hub, members, publication, rule, reduction.ranks, messages=messages, fingerprint=FINGERPRINT, min_workers=2,
        returns=True, exited=lambda worker, wait_s: None, fence=lambda worker: None,
    )  # fmt: skip
    return Coordinator(
        hub=hub, admission=admission, publication=publication, rule=rule, reduction=reduction, model=model,
        messages=messages, first_version=first_version, timeout_s=timeout_s, patience=Patience(None, timeout_s),
    )  # fmt: skip
