"""Rank 0 and workers of one fit over real links, each worker in a thread: what is lost on the way stalls nobody."""

import math
import socket
import threading
import time
from collections import deque
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest
import torch
import zmq
from torch import nn

from lwpd_lightning.coding import uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange import peers
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksums
from lwpd_lightning.exchange.update import Contribution, How, Step
from lwpd_lightning.exchange.worker import Worker
from lwpd_lightning.links.header import COORDINATOR, HEADER_BYTES, Header, Op
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.mesh import CoordinatorLost, WorkerLinks
from lwpd_lightning.links.message import EMPTY, Messages, text
from lwpd_lightning.links.rendezvous import LOOPBACK, endpoint
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks
from lwpd_lightning.rule.adaptive_wait import AdaptiveWait
from lwpd_lightning.rule.arrivals import ArrivalRule
from tests.exchange import rank_zero
from tests.exchange.rank_zero import FINGERPRINT
from tests.links.links import DEADLINE_S, MAX_BYTES, links

MESSAGES = Messages(bytes(range(16)), arena=None)
QUEUED = 4
QUIET_S = 0.3  # by then what another thread has sent is here


class Seat:
    """Model, optimizer and share in adding up of one rank; its gradient is a function of rank and version."""

    def __init__(self, worker, code, send, width=20):
        torch.manual_seed(0)
        self.worker, self.model = worker, nn.Linear(30, width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.precision = torch.amp.GradScaler("cpu")
        self.messages = Messages(MESSAGES.run_id, arena=None)
        self.blocks = BlockMap(list(self.model.parameters()), code.blocks)
        wire, ranks = wire_format("float32"), Ranks(worker, 0, set(range(code.n)))
        parts = MessageSums(ranks, self.blocks.block_size, wire, wire, self.messages, send)
        self.reduction = Reduction(self.blocks, parts, None, LinearReceiver(code, self.blocks, one_version=False))

    def codeword(self, version):
        generator = torch.Generator().manual_seed(1000 * version + self.worker)
        values = torch.randn(self.blocks.block_size, generator=generator)
        return Codeword(values, wire_format("float32").pack(values)), Contribution(
            version, [True, True], 0.0, 4, 0.0, EMPTY
        )


class SlowReader(WorkerLinks):
    """Links that read nothing while the gate is closed, as of a process that gets no processor.

    The gate closes itself behind the codeword of version ``closes_at``, and ``closed`` is set.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate, self.closed, self.closes_at = threading.Event(), threading.Event(), None
        self.gate.set()

    def send(self, to, frames):
        super().send(to, frames)
        header = Header.unpack(frames[0][:HEADER_BYTES], run_id=MESSAGES.run_id)
        if header.op is Op.READY and header.version == self.closes_at:
            self.gate.clear()
            self.closed.set()

    def receive(self, timeout_s):
        assert self.gate.wait(DEADLINE_S)
        return super().receive(timeout_s)


class FarWorker(threading.Thread):
    """A worker in a thread; ``before`` is called with (worker, version) in the midst of its computing."""

    def __init__(self, links, seat, before):
        super().__init__(daemon=True)
        self.links, self.seat, self._before = links, seat, before
        self.computed, self.error = [], None
        self.share = lambda worker: torch.tensor([worker.seat.worker], dtype=torch.uint8)
        self._worker = Worker(
            links=links, reduction=self.seat.reduction, model=self.seat.model, optimizer=self.seat.optimizer,
            precision=self.seat.precision, replica=self, messages=self.seat.messages, fingerprint=FINGERPRINT,
            timeout_s=DEADLINE_S,
        )  # fmt: skip

    def run(self):
        try:
            self._worker.run()
        except CoordinatorLost as error:
            self.error = error
        finally:
            self.links.close()

    # A replica, which has no hooks.

    def enter(self, assignment, validate=None):
        if validate is not None:
            validate()

    def validated(self):
        return self.share(self)

    def skip(self, at):
        pass

    def compute(self, assignment, settle):
        settle()
        self.computed.append(assignment.version)
        self._before(self, assignment.version)
        return self.seat.codeword(assignment.version)

    def step(self, at):
        self.seat.optimizer.step()


class Fit:
    """Rank 0, in the calling thread, and workers 1 to n - 1."""

    def __init__(
        self, stack, n, *, before=lambda worker, version: None, width=20, timeout_s=DEADLINE_S, peers=True,
        queued=QUEUED, heartbeat_s=5.0, made=Seat, reader=SlowReader, first_version=0, **rule,
    ):  # fmt: skip
        self.run_key, code, others = RunKey.generate(), uncoded(n), range(1, n)
        self.hub = Hub(
            self.run_key, list(others), host=LOOPBACK, heartbeat_s=heartbeat_s, max_message_bytes=MAX_BYTES,
            queued=queued,
        )  # fmt: skip
        self.seat = made(0, code, self.hub.send, width)
        publication = Publication(
            self.hub, MESSAGES, self.seat.model, torch.device("cpu"), self.seat.optimizer, self.seat.precision
        )
        self.coordinator = rank_zero.coordinator(
            self.hub, publication, ArrivalRule(code, **{"wait_for": n, "own": 0, **rule}), self.seat.reduction,
            model=self.seat.model, messages=MESSAGES, timeout_s=timeout_s, first_version=first_version,
        )  # fmt: skip
        self.workers = {}
        for worker in others:
            end = links(self.run_key, worker, self.hub, peers=[w for w in others if w != worker and peers],
                        queued=queued, heartbeat_s=heartbeat_s, made=reader)  # fmt: skip
            self.workers[worker] = FarWorker(end, made(worker, code, end.send, width), before)
        self.checksums = Checksums(self.seat.model, self.seat.blocks.parameters)
        self._step, self._stopped = None, False
        stack.callback(self.stop)

    def start(self):
        for thread in self.workers.values():
            thread.start()
        self.coordinator.admit()

    def updates(self, count, meanwhile=lambda version: None, moved=False, between=lambda version: None, validates=()):
        """Train.

        Args:
            count: updates.
            meanwhile: called with each version while workers compute it.
            moved: by more than steps.
            between: called with each version where rank 0 has published it and is yet to begin it.
            validates: the versions at which ranks validate.
        """
        coordinator, optimizer, updates = self.coordinator, self.seat.optimizer, []
        for _ in range(count):
            step = None if moved else self._step
            how = How.WHOLE if moved else How.AHEAD if step else How.FIRST
            coordinator.publish(0, 0, 0, how, step=step, validates=coordinator.version + 1 in validates)
            between(coordinator.version)
            coordinator.arrived(self.checksums.take())
            meanwhile(coordinator.version)
            coordinator.contribute(*self.seat.codeword(coordinator.version))
            updates.append(coordinator.collect())
            coordinator.deliver()
            optimizer.step()
            self._step = Step(coordinator.decided, [{"lr": 0.1}])
        return updates

    def stop(self, await_farewell=False):
        if self._stopped:
            return
        self._stopped = True
        for thread in self.workers.values():
            thread.links.gate.set()
        self.coordinator.stop(0, 0, await_farewell=await_farewell)
        for thread in self.workers.values():
            if thread.ident is None:
                thread.links.close()
                continue
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def assert_trained_as_one(self, updates):
        """Rank 0 is where one process would be that counts what was counted."""
        alone = Seat(0, uncoded(len(self.workers) + 1), None, self.seat.model.out_features)
        for version, update in enumerate(updates):
            assert len(update.arrivals) == len(self.workers) + 1
            rows = [Seat.codeword(_Numbered(alone, a.worker), version)[0].exact for a in update.arrivals]
            alone.blocks.scatter(torch.stack(rows).mean(dim=0)[None], [True, True])
            alone.optimizer.step()
        for ours, theirs in zip(self.seat.model.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


class _Numbered:
    def __init__(self, seat, worker):
        self.worker, self.blocks = worker, seat.blocks


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_workers_and_rank_0_train_as_one_process(stack):
    fit = Fit(stack, 3)
    fit.start()
    updates = fit.updates(5)
    fit.assert_trained_as_one(updates)
    assert [update.resyncs for update in updates] == [0] * 5


def test_among_many_workers_links_stand_between_neighbours_and_to_those_who_add_up(stack, monkeypatch):
    """Worker 1 alone adds up so small a model: 5 x 4 links between workers would be 12 too many."""
    monkeypatch.setattr(peers, "_NEIGHBOURS", 1)
    fit = Fit(stack, 6)
    fit.start()
    fit.assert_trained_as_one(fit.updates(5))
    linked = {worker: set(thread.links._spokes) for worker, thread in fit.workers.items()}
    assert linked == {1: {2, 3, 4, 5}, 2: {1, 3}, 3: {1, 2, 4}, 4: {1, 3, 5}, 5: {1, 4}}


def test_a_link_that_never_stands_costs_one_of_its_two_workers(stack, monkeypatch):
    """Workers 1 and 3 are no neighbours, and meet when 1 is to add up what 3 has: nothing of it ever comes."""
    monkeypatch.setattr(peers, "_NEIGHBOURS", 1)
    fit = Fit(stack, 6, wait_for=5, heartbeat_s=2.0, stale="drop")
    ends = fit.workers[3].links
    introduce = ends.introduce
    with socket.socket() as nowhere:
        nowhere.bind((LOOPBACK, 0))  # and does not listen
        address = endpoint(LOOPBACK, nowhere.getsockname()[1])
        ends.introduce = lambda told: introduce({worker: address if worker == 1 else told[worker] for worker in told})
        fit.start()
        while not fit.coordinator.failures:
            fit.updates(1)
    fit.updates(2)
    assert {failure.worker for failure in fit.coordinator.failures} == {3}
    assert "its link to worker 1 ended" in fit.coordinator.failures[0].reason


@pytest.mark.parametrize("share", [False, True], ids=["linked", "sharing memory"])
def test_a_worker_that_dies_before_another_has_joined_is_not_waited_for(stack, share):
    """Nobody can tell the late one, which has no link yet."""
    fit = Fit(stack, 4, peers=not share)
    fit.workers.pop(1).links.close()
    fingerprint = torch.tensor(list(FINGERPRINT + bytes(32)), dtype=torch.uint8)
    with closing(links(fit.run_key, 1, fit.hub, peers=[2, 3])) as short_lived:
        join = MESSAGES.pack(Header(Op.JOIN, MESSAGES.run_id, 1), fingerprint, text(short_lived.address))
        short_lived.send(COORDINATOR, join)

    def join_late():
        deadline = time.monotonic() + DEADLINE_S
        while not fit.coordinator.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        fit.workers[3].start()

    late = threading.Thread(target=join_late)
    late.start()
    fit.workers[2].start()
    fit.coordinator.admit()
    late.join()
    assert [failure.worker for failure in fit.coordinator.failures] == [1]
    for worker in (2, 3):
        assert fit.workers[worker].seat.reduction.ranks.workers == {0, 2, 3}
    if not share:
        assert [sorted(a.worker for a in update.arrivals) for update in fit.updates(4)] == [[0, 2, 3]] * 4


@contextmanager
def silent(fit, incarnation):
    """A process of worker 3's that joins, and neither greets nor hears."""
    fingerprint = torch.tensor(list(FINGERPRINT + bytes(32)), dtype=torch.uint8)
    with closing(links(fit.run_key, 3, fit.hub, peers=[1, 2])) as ends:
        messages = Messages(MESSAGES.run_id, arena=None, incarnation=incarnation)
        ends.send(COORDINATOR, messages.pack(Header(Op.JOIN, MESSAGES.run_id, 3), fingerprint, text(ends.address)))
        yield


def updates_until(fit, happened):
    deadline, updates = time.monotonic() + DEADLINE_S / 2, []
    while not happened():
        updates += fit.updates(1)
        assert time.monotonic() < deadline
    return updates


def test_one_that_joins_and_reaches_nobody_keeps_nobody_waiting_nor_out(stack):
    fit = Fit(stack, 4)
    fit.workers.pop(3).links.close()
    with silent(fit, 7):
        pass
    fit.start()
    fit.updates(2)
    members = fit.coordinator._members
    with silent(fit, 8):
        updates = updates_until(fit, lambda: 3 in members.present)
        updates += fit.updates(20)
        fit.coordinator._lose(1, "it is to come back")
        updates_until(fit, lambda: 1 in members.live)
        assert 3 in members.present - members.live
    assert {tuple(sorted(arrival.worker for arrival in update.arrivals)) for update in updates} == {(0, 1, 2)}


class Deaf(SlowReader):
    """Links of which the one to rank 0 ends once, at this end alone: rank 0 sees it stand."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ends, self._left = threading.Event(), []

    def receive(self, timeout_s):
        if self.ends.is_set():
            self.ends.clear()
            raise CoordinatorLost("the link to the coordinator ended")
        return super().receive(timeout_s)

    def renew(self):
        self._left.append(self._coordinator)
        close, self._coordinator.close = self._coordinator.close, lambda linger: None
        super().renew()
        self._left[-1].close = close

    def close(self):
        for spoke in self._left:
            spoke.close(linger=False)
        super().close()


def test_a_worker_whose_link_ended_is_let_in_though_rank_0_sees_the_link_stand(stack):
    fit = Fit(stack, 3, heartbeat_s=DEADLINE_S, wait_for=2, reader=Deaf)
    fit.start()
    fit.updates(2)
    fit.workers[1].links.ends.set()
    updates_until(fit, lambda: fit.coordinator.failures)
    updates_until(fit, lambda: 1 in fit.coordinator._members.live)
    fit.updates(5)
    assert [(failure.worker, failure.reason) for failure in fit.coordinator.failures] == [(1, "its link ended")]


def test_a_refusal_of_an_older_try_has_no_effect(stack, monkeypatch):
    """It may come behind the next one, which is let in then: a third would be refused as another process."""
    fit = Fit(stack, 3, wait_for=2)
    fit.start()
    fit.updates(2)
    admission, older = fit.coordinator._admission, fit.coordinator._members.incarnation(1)
    join = admission.join

    def refuse_again(event, *message):
        admission.refuse(event.link, older, "worker 1 has been given up")
        return join(event, *message)

    monkeypatch.setattr(admission, "join", refuse_again)
    fit.coordinator._lose(1, "it is to come back")
    updates_until(fit, lambda: 1 in fit.coordinator._members.live)
    fit.updates(5)
    assert len(fit.coordinator.failures) == 1
    assert fit.workers[1].seat.messages.incarnation == fit.coordinator._members.incarnation(1)


def test_a_codeword_that_waited_for_its_worker_to_count_counts_at_once_when_it_does(stack, monkeypatch):
    """Worker 1 comes back while worker 3 computes and meets nobody; when that is lost, the update needs worker 1."""
    hung, go_on = threading.Event(), threading.Event()

    def before(thread, version):
        if thread.seat.worker == 3 and version >= 2:
            hung.set()
            assert go_on.wait(DEADLINE_S)

    fit = Fit(stack, 4, before=before, wait_for=3, timeout_s=DEADLINE_S / 2)
    stack.callback(go_on.set)
    fit.start()
    updates_until(fit, hung.is_set)
    coordinator = fit.coordinator
    coordinator._lose(1, "it is to come back")
    restart = coordinator._admission.restart

    def then_lose_another(now):
        back, other = (coordinator._members._members[worker] for worker in (1, 2))
        met = back.introduced <= min(back.met, other.met) and 1 not in other.unmet
        if 1 in coordinator._tally._ready and met and 3 in coordinator._members.live:
            coordinator._lose(3, "it computes for too long")
        restart(now)

    monkeypatch.setattr(coordinator._admission, "restart", then_lose_another)
    (update,) = fit.updates(1)
    assert {arrival.worker for arrival in update.arrivals} == {0, 1, 2}
    go_on.set()
    updates_until(fit, lambda: 3 in coordinator._members.live)


def test_a_slice_that_a_full_queue_refused_is_decided_again(stack):
    """Worker 2 cannot send its slice to worker 1, which adds up and would wait for it."""

    def before(thread, version):
        if version == 3 and thread.seat.worker == 2:
            reader = fit.workers[1].links
            assert reader.closed.wait(DEADLINE_S)
            fill(thread.links, 1)
            opens_after(thread, 1, reader.gate)

    fit = Fit(stack, 3, before=before)
    fit.workers[1].links.closes_at = 3
    fit.start()
    updates = fit.updates(5)
    fit.assert_trained_as_one(updates)
    assert fit.coordinator.failures == []
    assert fit.coordinator.decided > 5


def test_a_part_that_a_full_queue_refused_does_not_hold_its_worker_up(stack):
    """Worker 1 cannot send what it added up to worker 2, which cannot step, and is then waited for."""
    busy, go_on = threading.Event(), threading.Event()

    def before(thread, version):
        if version == 3 and thread.seat.worker == 2:
            busy.set()
            assert go_on.wait(DEADLINE_S)
        if version == 3 and thread.seat.worker == 1:
            assert busy.wait(DEADLINE_S)
            fill(thread.links, 2)

    fit = Fit(stack, 4, before=before, wait_for=3, stale="drop")
    fit.start()
    fit.updates(4, lambda version: version < 3 or busy.wait(DEADLINE_S))
    fit.coordinator._lose(3, "is no more")
    go_on.set()
    updates = fit.updates(3)
    assert max(fit.workers[2].computed) > 4
    assert [failure.worker for failure in fit.coordinator.failures] == [3]
    assert sum(update.resyncs for update in updates) == 1


def test_a_decision_that_a_full_queue_refused_is_made_again(stack):
    """Rank 0 cannot tell worker 1 who counts."""
    filled = threading.Event()

    def before(thread, version):
        if version == 3 and thread.seat.worker == 2:
            assert filled.wait(DEADLINE_S)
            opens_after(thread, 1, fit.workers[1].links.gate)

    def fill_hub(version):
        if version == 3:
            assert fit.workers[1].links.closed.wait(DEADLINE_S)
            fill_for(fit.hub, 1)
            filled.set()

    fit = Fit(stack, 3, before=before)
    fit.workers[1].links.closes_at = 3
    fit.start()
    updates = fit.updates(5, fill_hub)
    fit.assert_trained_as_one(updates)
    assert fit.coordinator.failures == []


def test_a_worker_that_missed_versions_does_not_wait_for_what_it_has_not_heard(stack):
    """Its codeword is too old, says a version that found no room: it would wait, and rank 0 for it."""
    busy, go_on = threading.Event(), threading.Event()

    def before(thread, version):
        if version == 3 and thread.seat.worker == 1:
            busy.set()
            assert go_on.wait(DEADLINE_S)

    def fill_hub(version):
        if version == 3:
            assert busy.wait(DEADLINE_S)
            fill_for(fit.hub, 1)

    fit = Fit(stack, 3, before=before, wait_for=2, stale="drop")
    fit.start()
    fit.updates(5, fill_hub)
    fit.coordinator._lose(2, "is no more")
    go_on.set()
    fit.updates(3)
    assert max(fit.workers[1].computed) > 5


def test_a_worker_that_takes_over_states_keeps_nothing_of_older_decisions(stack):
    """Where rank 0 changes its weights after every step, workers make none."""
    fit = Fit(stack, 3)
    fit.start()
    updates = fit.updates(30, moved=True) + fit.updates(2) + fit.updates(30, moved=True)
    fit.assert_trained_as_one(updates)
    assert sum(update.resyncs for update in updates) == 0
    fit.stop()
    for seat in (fit.seat, *(thread.seat for thread in fit.workers.values())):
        received = seat.reduction._received
        assert len(received.decisions) <= 2
        assert len(received._sums) <= 2
        assert len(received._slices) <= 2


@pytest.mark.parametrize("awaited", [True, False])
def test_a_worker_that_reads_late_hears_that_it_is_over(stack, awaited):
    """There was no room for it when the others were told."""
    busy, go_on = threading.Event(), threading.Event()

    def before(thread, version):
        if version >= 3 and thread.seat.worker == 1:
            busy.set()
            assert go_on.wait(DEADLINE_S)

    fit = Fit(stack, 3, before=before, wait_for=2)
    fit.start()
    deadline = time.monotonic() + DEADLINE_S
    while not busy.is_set():  # one of two counts in each
        fit.updates(1)
        assert time.monotonic() < deadline
    fill_for(fit.hub, 1)
    send = fit.hub.send

    def sending(worker, frames):
        send(worker, frames)
        if worker == 1:
            go_on.set()

    fit.hub.send = sending
    fit.stop(await_farewell=awaited)
    assert fit.workers[1].error is None


@pytest.mark.parametrize("busy", [False, True], ids=["rank 0 waits", "rank 0 computes"])
def test_an_adaptive_k_hears_of_slow_links(stack, busy):
    """All say that they computed for no time; the word of one is late."""
    code = uncoded(4)
    adaptive = AdaptiveWait(code, 2, 4, own=0, feedback=False)

    def before(thread, version):
        time.sleep(0.2 if thread.seat.worker == 2 else 0.02)

    fit = Fit(stack, 4, before=before, adaptive=adaptive, queued=100)
    fit.start()
    updates = fit.updates(120, (lambda version: time.sleep(0.02)) if busy else lambda version: None)
    assert max(update.wait_for for update in updates[-10:]) < 4
    known = adaptive._delays[2][adaptive._delays[2] < math.inf]
    assert len(known) > 4
    assert np.median(known) > 0.1  # of one that was busy meanwhile nobody can tell


def junk(worker):
    return MESSAGES.pack(Header(Op.MEET, MESSAGES.run_id, worker), torch.zeros(64_000, dtype=torch.uint8))


def fill(links, to):
    """Send what nobody reads until there is no room, nor any made by what is still on its way."""
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        zmq.select(list(links._inbox.sockets), [], [], QUIET_S)
        links._take()
    while to not in links._refusing:
        links.send(to, junk(links._worker))


def fill_for(hub, worker):
    """As `fill`, from rank 0, which finds what comes meanwhile when it looks the next time."""
    came, events, deadline = deque(), hub.events, time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        came.extend(events(QUIET_S))
    while worker not in hub.refused:
        hub.send(worker, junk(COORDINATOR))
    hub.refused.discard(worker)

    def all_events(timeout_s):
        while came:
            yield came.popleft()
        yield from events(timeout_s)

    hub.events = all_events


def opens_after(thread, to, gate):
    """Open a gate when the worker has tried to send its slice ``to`` another."""
    send = thread.seat.reduction.sums.send

    def opening(address, frames):
        send(address, frames)
        if address == to:
            gate.set()

    thread.seat.reduction.sums.send = opening
