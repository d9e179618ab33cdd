"""What workers' senders remember comes to rank 0 between updates, and a fit that goes on with it has the same bits."""

import copy
import threading
from contextlib import ExitStack

import pytest
import torch

from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.update import Contribution
from lwpd_lightning.links.message import EMPTY
from lwpd_lightning.links.transport import LinkLost
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks
from tests.exchange.test_worker import QUIET_S, Fit, Seat, updates_until
from tests.links.links import DEADLINE_S

SAVED_AT, UPDATES = 3, 6
INT8 = wire_format("int8")


class Remembering(Seat):
    """Sends int8, and remembers what that lost."""

    def __init__(self, worker, code, send, width=20):
        super().__init__(worker, code, send, width)
        self.sender = ErrorFeedback(code, worker, self.blocks)
        ranks = Ranks(worker, 0, set(range(code.n)))
        sums = MessageSums(ranks, self.blocks.block_size, INT8, wire_format("float32"), self.messages, send)
        receiver = LinearReceiver(code, self.blocks, one_version=False)
        self.reduction = Reduction(self.blocks, sums, self.sender, receiver)

    def codeword(self, version):
        generator = torch.Generator().manual_seed(1000 * version + self.worker)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.sender.begin(version)
        self.sender.add(self.worker)
        codeword = self.sender.codeword()
        return Codeword(codeword, INT8.pack(codeword)), Contribution(version, [True, True], 0.0, 4, 0.0, EMPTY)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def weights(fit):
    return torch.cat([parameter.detach().flatten() for parameter in fit.seat.model.parameters()])


@pytest.mark.parametrize("handed_out", [True, False])
def test_a_fit_that_goes_on_with_what_senders_remembered_has_the_same_bits(stack, handed_out):
    computing, kept = {worker: threading.Event() for worker in (1, 2)}, {}

    def before(worker, version):
        if version == SAVED_AT:
            computing[worker.seat.worker].set()

    def save(version):
        if version == SAVED_AT:  # where workers have gone ahead, so that their memories hold the next codeword
            assert all(event.wait(DEADLINE_S) for event in computing.values())
            kept.update(
                model=copy.deepcopy(whole.seat.model.state_dict()),
                own=whole.seat.sender.state_dict(),
                others=whole.coordinator.memories.gather(version, DEADLINE_S),
            )

    whole = Fit(stack, 3, made=Remembering, before=before)
    whole.start()
    updates = whole.updates(UPDATES, between=save)
    assert [update.resyncs for update in updates] == [0] * UPDATES
    assert {worker: memory["unsettled"] for worker, memory in kept["others"].items()} == {1: SAVED_AT, 2: SAVED_AT}

    on = Fit(stack, 3, made=Remembering, first_version=SAVED_AT)
    on.seat.model.load_state_dict(kept["model"])
    on.seat.sender.load_state_dict(kept["own"])
    on.start()
    if handed_out:
        on.coordinator.memories.hand_out(kept["others"])
    on.updates(UPDATES - SAVED_AT)
    assert torch.equal(weights(on), weights(whole)) == handed_out


def test_a_worker_that_does_not_answer_in_time_is_left_out_and_what_it_says_later_changes_nothing(stack, caplog):
    fit = Fit(stack, 3, made=Remembering)
    fit.workers[2].links.closes_at = SAVED_AT
    gathered = {}

    def save(version):
        if version == SAVED_AT:
            assert fit.workers[2].links.closed.wait(DEADLINE_S)
            gathered.update(fit.coordinator.memories.gather(version, QUIET_S))
            fit.workers[2].links.gate.set()

    fit.start()
    updates = fit.updates(UPDATES, between=save)
    assert gathered.keys() == {1}
    assert "lacks what workers [2] remember of codewords, who were lost or have not told in 0.3 s" in caplog.text
    assert [len(update.arrivals) for update in updates] == [3] * UPDATES
    assert not fit.coordinator.failures


def test_one_that_is_lost_meanwhile_is_not_waited_for_and_lost_afterwards(stack):
    fit = Fit(stack, 3, made=Remembering, wait_for=2)
    gathered = {}

    def save(version):
        if version == SAVED_AT:
            fit.hub.put_back([LinkLost(2)])
            gathered.update(fit.coordinator.memories.gather(version, DEADLINE_S))
            assert not fit.coordinator.failures

    fit.start()
    fit.updates(SAVED_AT + 1, between=save)
    assert gathered.keys() == {1}
    updates_until(fit, lambda: 2 in fit.coordinator._members.live)
    assert [failure.worker for failure in fit.coordinator.failures] == [2]
