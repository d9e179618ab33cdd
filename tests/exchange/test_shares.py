"""Shares of a validation come to rank 0 between updates, of the version and the model that it validates alone."""

from contextlib import ExitStack

import pytest
import torch

from lwpd_lightning.exchange.state import Checksum
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import LinkLost
from tests.exchange.test_worker import MESSAGES, QUIET_S, Fit
from tests.links.links import DEADLINE_S

VALIDATED, UPDATES = 3, 6


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def train(fit, wait):
    """Shares that came, by worker: ``wait`` is given the checksum of rank 0's model."""
    came = []

    def between(version):
        if version == VALIDATED:
            came.append(wait(fit.checksums.take()))

    fit.start()
    updates = fit.updates(UPDATES, between=between, validates=[VALIDATED])
    assert [len(update.arrivals) for update in updates] == [len(fit.workers) + 1] * UPDATES
    fit.assert_trained_as_one(updates)
    return {worker: payload.tolist() for worker, payload in came[0].items()}


def test_each_worker_tells_its_share_and_trains_on(stack):
    fit = Fit(stack, 3)
    shares = fit.coordinator.shares
    told = train(fit, lambda checksum: shares.wait([1, 2], VALIDATED, checksum, DEADLINE_S))
    assert told == {1: [1], 2: [2]}
    assert shares._told == {}


@pytest.mark.parametrize("changed", ["version", "trainable", "rest"])
def test_a_share_of_another_version_or_model_is_none(stack, changed):
    fit = Fit(stack, 2)

    def wait(checksum):
        version = VALIDATED + (changed == "version")
        other = Checksum(checksum.trainable + (changed == "trainable"), checksum.rest + (changed == "rest"))
        return fit.coordinator.shares.wait([1], version, other, QUIET_S if changed == "version" else DEADLINE_S)

    assert train(fit, wait) == {}


def test_a_worker_that_can_do_none_is_waited_for_no_longer_than_asked(stack):
    fit = Fit(stack, 3)
    fit.workers[1].share = lambda worker: None
    told = train(fit, lambda checksum: fit.coordinator.shares.wait([1, 2], VALIDATED, checksum, QUIET_S))
    assert told.keys() <= {2}


def test_what_an_older_incarnation_says_is_no_share(stack):
    fit = Fit(stack, 2)

    def forged(worker):
        header = Header(Op.VALIDATED, MESSAGES.run_id, 1, VALIDATED)
        older = Messages(MESSAGES.run_id, None, incarnation=7)
        worker.links.send(COORDINATOR, older.pack(header, torch.ones(1, dtype=torch.uint8)))

    fit.workers[1].share = forged
    told = train(fit, lambda checksum: fit.coordinator.shares.wait([1], VALIDATED, checksum, QUIET_S))
    assert told == {}
    assert fit.coordinator.shares._told == {}


def test_one_that_is_lost_meanwhile_is_not_waited_for(stack):
    fit = Fit(stack, 3, wait_for=2)
    fit.workers[2].share = lambda worker: None

    def between(version):
        if version == VALIDATED:
            fit.hub.put_back([LinkLost(2)])
            told = fit.coordinator.shares.wait([1, 2], version, fit.checksums.take(), DEADLINE_S)
            assert told.keys() == {1}
            assert not fit.coordinator.failures

    fit.start()
    fit.updates(VALIDATED + 2, between=between, validates=[VALIDATED])
    assert [failure.worker for failure in fit.coordinator.failures] == [2]
