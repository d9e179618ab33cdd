"""Rank 0 over real links: an update is decided again when a link between workers breaks, and a worker is given up."""

import threading
from contextlib import ExitStack, closing

import pytest
import torch
from torch import nn

from lwpd_lightning.coding import uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksum
from lwpd_lightning.exchange.update import Contribution, Failure, How
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.mesh import CoordinatorLost
from lwpd_lightning.links.message import EMPTY, Messages, text
from lwpd_lightning.links.rendezvous import LOOPBACK
from lwpd_lightning.links.transport import LinkLost
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.membership import RETRIES
from tests.exchange import rank_zero
from tests.exchange.rank_zero import FINGERPRINT
from tests.links.links import DEADLINE_S, MAX_BYTES, QUEUED, links

CODE = uncoded(3)
MESSAGES = Messages(bytes(range(16)), arena=None)
ACCUSED, REPORTER = 1, 2


def model():
    return nn.Linear(30, 20)


def codeword(worker, size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(worker))
    return Codeword(values, wire_format("float32").pack(values))


def reduction(worker, send):
    blocks = BlockMap(list(model().parameters()), CODE.blocks)
    wire, ranks = wire_format("float32"), Ranks(worker, 0, {0, 1, 2})
    parts = MessageSums(ranks, blocks.block_size, wire, wire, MESSAGES, send)
    made = Reduction(blocks, parts, None, LinearReceiver(CODE, blocks, one_version=False))
    made.offer(codeword(worker, blocks.block_size))
    return made


class FarWorker(threading.Thread):
    """Computes, reports and adds up for one update; what it is told to report comes in place of its share.

    Args:
        links: to the coordinator and the other worker.
        worker: which one.
        reports: so many decisions are answered by a report that its link from the other worker has ended.
        back: of the link: "at once", "when greeted", or "never" again.
        reason: what it gives for that.
        accuses: whose link it says that; None: the other worker's.
        early: bytes of a part that it sends ahead of the first decision.
    """

    def __init__(self, links, worker, reports=0, back="at once", reason="", accuses=None, early=0):
        super().__init__(daemon=True)
        self._links, self._worker, self._reports, self._reason, self._early = links, worker, reports, reason, early
        self._back = back
        self._accuses = 3 - worker if accuses is None else accuses
        self._reduction = reduction(worker, links.send)
        self.decided = []
        self._say(Op.JOIN, torch.tensor(list(FINGERPRINT + bytes(32)), dtype=torch.uint8), text(links.address))

    def run(self):
        try:
            while self._took_part(self._links.receive(DEADLINE_S)):
                pass
        except CoordinatorLost:
            return  # given up: nobody says more to it

    def _took_part(self, event):
        if isinstance(event, LinkLost):
            return True
        header, payload, rest = MESSAGES.read(event.frames)
        if header.op is Op.PEERS:
            self._say(Op.MET, version=header.version)
        elif header.op is Op.VERSION:
            if self._early:
                self._say(Op.SUM, torch.zeros(self._early, dtype=torch.uint8), decision=1)
            self._say(Op.READY, rest=torch.ones(2, dtype=torch.uint8), samples=4)
        elif header.op is Op.DECISION:
            self.decided.append(header.decision)
            if len(self.decided) <= self._reports:
                self._say(Op.UNLINKED, text(self._reason), version=self._accuses, elements=int(self._back == "at once"))
            else:
                self._reduction.begin(Decision.unpack(header, payload, rest, CODE.blocks))
        elif header.op is Op.GREET and self._back == "when greeted":
            self._say(Op.LINKED, version=header.version)
        elif header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.LOST:
            self._reduction.ranks.workers.discard(header.version)
        return header.op is not Op.STOP

    def _say(self, op, payload=EMPTY, rest=EMPTY, **fields):
        header = Header(op, MESSAGES.run_id, self._worker, **fields)
        self._links.send(COORDINATOR, MESSAGES.pack(header, payload, rest))


@pytest.fixture
def closed():
    """Runs one update with two workers that behave as they are told; gives it, its gradient and who was lost."""
    with ExitStack() as stack:

        def closed(accused=None, reporter=None):
            run_key, trained = RunKey.generate(), model()
            hub = Hub(run_key, [1, 2], host=LOOPBACK, heartbeat_s=5.0, max_message_bytes=MAX_BYTES, queued=QUEUED)
            own = reduction(0, hub.send)
            publication = Publication(
                hub, MESSAGES, trained, torch.device("cpu"), torch.optim.SGD(trained.parameters()),
                torch.amp.GradScaler("cpu"),
            )  # fmt: skip
            rule = ArrivalRule(CODE, wait_for=3, own=0)
            coordinator = rank_zero.coordinator(hub, publication, rule, own, model=trained, messages=MESSAGES)
            ends = {w: stack.enter_context(closing(links(run_key, w, hub, peers=[3 - w]))) for w in (1, 2)}
            for worker, end in ends.items():
                end.introduce({3 - worker: ends[3 - worker].address})
            threads = [FarWorker(ends[1], ACCUSED, **(accused or {})), FarWorker(ends[2], REPORTER, **(reporter or {}))]
            for thread in threads:
                thread.start()
            coordinator.admit()
            coordinator.publish(0, 0, 0, How.FIRST)
            coordinator.arrived(Checksum(0, 0))
            coordinator.contribute(
                codeword(0, own.blocks.block_size), Contribution(0, [True, True], 0.0, 4, 0.0, EMPTY)
            )
            update = coordinator.collect()
            coordinator.deliver()
            coordinator.stop(0, 0, await_farewell=False)
            for thread in threads:
                thread.join(DEADLINE_S)
                assert not thread.is_alive()
            return update, own.blocks.gather()[0], coordinator.failures, threads[1].decided

        yield closed


def mean_of(weights):
    size = 30 * 20 + 20
    return sum(weight * codeword(worker, size).exact for worker, weight in weights.items()) / 3


@pytest.mark.parametrize("back", ["at once", "when greeted"])
@pytest.mark.parametrize("reports", [0, 1, RETRIES])
def test_an_update_is_decided_again_for_each_link_that_broke(closed, reports, back):
    update, gradient, failures, decided = closed(reporter={"reports": reports, "back": back})
    assert decided == list(range(1, reports + 2))
    assert failures == []
    assert (update.live, len(update.arrivals)) == (3, 3)
    torch.testing.assert_close(gradient, mean_of({0: 1, 1: 1, 2: 1}))


def test_who_sends_what_does_not_fit_is_given_up(closed):
    reason = "worker 1 sent 3 bytes for 4 values"
    update, gradient, failures, decided = closed(reporter={"reports": 1, "reason": reason})
    assert decided == [1, 2]
    assert failures == [Failure(ACCUSED, 0, f"{reason}, says worker {REPORTER}")]
    assert (update.live, sorted(arrival.worker for arrival in update.arrivals)) == (2, [0, REPORTER])
    torch.testing.assert_close(gradient, mean_of({0: 1, REPORTER: 2}))  # rank 0's is always there, one of two others


@pytest.mark.parametrize(
    ("reports", "back"), [(1, "never"), (RETRIES + 1, "at once")], ids=["never back", "again and again"]
)
def test_of_two_whose_link_does_not_hold_one_is_given_up(closed, reports, back):
    """Both reach rank 0, and the one that has not noticed what both must is more likely to be the cause."""
    update, gradient, failures, _ = closed(reporter={"reports": reports, "back": back})
    assert failures == [Failure(ACCUSED, 0, f"its link to worker {REPORTER} ended")]
    assert update.live == 2
    torch.testing.assert_close(gradient, mean_of({0: 1, REPORTER: 2}))


def test_a_worker_that_accuses_rank_0_is_given_up_itself(closed):
    _, gradient, failures, _ = closed(reporter={"reports": 1, "reason": "worker 0 sent 3 bytes", "accuses": 0})
    assert failures == [Failure(REPORTER, 0, "worker 0 sent 3 bytes, says it of rank 0")]
    torch.testing.assert_close(gradient, mean_of({0: 1, ACCUSED: 2}))


def test_a_part_that_came_to_rank_0_ahead_of_its_decision_is_blamed_on_its_sender(closed):
    update, gradient, failures, decided = closed(accused={"early": 12})
    (failure,) = failures
    assert failure.worker == ACCUSED
    assert failure.reason.startswith(f"worker {ACCUSED} sent 12 bytes for")
    assert decided == [1, 2]
    assert sorted(arrival.worker for arrival in update.arrivals) == [0, REPORTER]
    torch.testing.assert_close(gradient, mean_of({0: 1, REPORTER: 2}))
