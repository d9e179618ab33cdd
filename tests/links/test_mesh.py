"""A worker's links over real sockets: to the coordinator and straight to other workers."""

import socket
from contextlib import ExitStack, closing

import pytest
import zmq

from lwpd_lightning.links.header import COORDINATOR
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.mesh import CoordinatorLost, Missed, WorkerLinks
from lwpd_lightning.links.rendezvous import LOOPBACK
from lwpd_lightning.links.transport import LinkLost
from tests.links.links import DEADLINE_S, MAX_BYTES, QUEUED, address, events_until, links


@pytest.fixture
def run_key():
    return RunKey.generate()


@pytest.fixture
def hub(run_key):
    with closing(Hub(run_key, [1, 2], host=LOOPBACK, heartbeat_s=5.0, max_message_bytes=MAX_BYTES, queued=QUEUED)) as h:
        yield h


@pytest.fixture
def pair(run_key, hub):
    """Workers 1 and 2, which know each other and the coordinator."""
    with ExitStack() as stack:
        one, two = (stack.enter_context(closing(links(run_key, w, hub, peers=[3 - w]))) for w in (1, 2))
        one.introduce({2: two.address})
        two.introduce({1: one.address})
        yield one, two


def received(end):
    message = end.receive(DEADLINE_S)
    return (
        message
        if isinstance(message, LinkLost | Missed)
        else (message.worker, [bytes(frame) for frame in message.frames])
    )


def test_workers_reach_each_other_and_the_coordinator_both(hub, pair):
    one, two = pair
    one.send(2, [b"to two", bytes(200_000)])
    assert received(two) == (1, [b"to two", bytes(200_000)])
    two.send(1, [b"to one"])
    assert received(one) == (2, [b"to one"])
    two.send(COORDINATOR, [b"up"])
    assert events_until(hub, lambda event: True) == [(2, [b"up"])]
    hub.send(2, [b"down"])
    assert received(two) == (COORDINATOR, [b"down"])
    assert list(hub.events(0.0)) == []  # what workers say to each other passes no third


def test_messages_of_one_sender_keep_their_order(hub, pair):
    """What a reducer sent for one decision comes before what it sent for the next: `Reduction.hopeless` rests on it."""
    one, two = pair
    two.send(COORDINATOR, [b"hello"])
    events_until(hub, lambda event: True)
    for number in range(40):
        one.send(2, [b"part", str(number).encode()])
        hub.send(2, [b"version", str(number).encode()])
    seen = [received(two) for _ in range(80)]
    for sender in (1, COORDINATOR):
        numbers = [int(frames[1]) for worker, frames in seen if worker == sender]
        assert numbers == list(range(40))


def test_waiting_says_whether_there_is_something_to_receive(pair):
    one, two = pair
    assert not two.waiting
    one.send(2, [b"first"])
    one.send(2, [b"second"])
    assert received(two) == (1, [b"first"])
    assert received(two) == (1, [b"second"])
    assert not two.waiting


def test_a_link_can_be_opened_anew_again_and_again(pair, hub):
    """A closed socket's identity may be the next one's, and ZeroMQ lets go of its address only later."""
    one, _ = pair
    for _ in range(30):
        one.renew()
    one.send(COORDINATOR, [b"still there"])
    assert (1, [b"still there"]) in events_until(hub, lambda event: event == (1, [b"still there"]))


def test_messages_queue_until_the_link_stands(run_key, hub):
    """One worker may be told of the others, and send, before the other has looked at its inbox at all."""
    with closing(links(run_key, 1, hub, peers=[2])) as one, closing(links(run_key, 2, hub, peers=[1])) as two:
        one.send(2, [b"too early"])  # has no link: lost
        one.introduce({2: two.address})
        one.send(2, [b"early"])
        assert received(two) == (1, [b"early"])
        assert not two.waiting


def test_a_link_opens_with_the_first_message_for_it(pair):
    """Ranks that have nothing for each other need no link: there would be n x n of them."""
    one, two = pair
    assert not one._spokes
    one.send(2, [b"hello"])
    assert received(two) == (1, [b"hello"])
    assert not two._spokes


def test_a_link_that_something_is_to_come_on_and_never_stands_has_ended(run_key, hub):
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(closing(links(run_key, w, hub, peers=[3 - w], heartbeat_s=0.3))) for w in (1, 2)
        )
        one.introduce({2: two.address})
        two.introduce({1: one.address})
        two.expect([1])
        assert received(two) == LinkLost(1)  # nothing came: it is not known whether the worker lives
        one.send(2, [b"late"])
        assert received(two) == (1, [b"late"])
        two.expect([1])  # something has come, and its end would be seen
        assert not two._awaited


def test_a_link_that_stands_in_time_has_not_ended(pair):
    one, two = pair
    two.expect([1])
    one.send(2, [b"in time"])
    assert received(two) == (1, [b"in time"])
    assert not two._awaited
    assert not two.waiting


def test_nobody_waits_for_who_is_an_erasure(pair):
    _, two = pair
    two.expect([1])
    two.disconnect(1)
    two.expect([1])
    assert not two._awaited


def test_who_missed_something_is_reported_once_when_it_reads_again(pair):
    one, two = pair
    one.send(2, [b"first"])
    assert received(two) == (1, [b"first"])
    while not one._refusing:
        one.send(2, [bytes(200_000)])
    for _ in range(100):
        one.send(2, [bytes(200_000)])  # what else is lost is not counted
    while not one.waiting:  # the other reads until there is room
        if two.waiting:
            received(two)
    assert received(one) == Missed(2)
    one.send(2, [b"heard"])
    while received(two) != (1, [b"heard"]):
        pass
    assert not one.waiting
    assert not one._refusing


def test_the_end_of_a_worker_is_reported_to_the_other(run_key, hub):
    with closing(links(run_key, 2, hub, peers=[1])) as two:
        with closing(links(run_key, 1, hub, peers=[2])) as one:
            one.introduce({2: two.address})
            one.send(2, [b"hello"])
            assert received(two) == (1, [b"hello"])
        assert received(two) == LinkLost(1)
        two.send(COORDINATOR, [b"still here"])
        events_until(hub, lambda event: event == (2, [b"still here"]))


def test_an_inbox_opens_for_the_named_peers_of_this_run_only(run_key, hub):
    with ExitStack() as stack:
        ends = {w: stack.enter_context(closing(links(run_key, w, hub, peers=[p]))) for w, p in ((1, 2), (2, 1))}
        stranger = WorkerLinks(
            RunKey.generate(), 2, address(hub), peers=[1], heartbeat_s=5.0, max_message_bytes=MAX_BYTES, queued=QUEUED
        )
        stack.enter_context(closing(stranger))
        uninvited = stack.enter_context(closing(links(run_key, 3, hub, peers=[1])))
        for liar in (stranger, uninvited):
            liar.introduce({1: ends[1].address})
            liar.send(1, [b"lie"])
        ends[2].introduce({1: ends[1].address})
        ends[2].send(1, [b"true"])
        assert received(ends[1]) == (2, [b"true"])
        # Refused handshakes make the inbox's monitor speak; that is nothing to receive.
        ends[2].send(1, [b"and nothing else"])
        assert received(ends[1]) == (2, [b"and nothing else"])
        assert not ends[1].waiting


def test_a_strangers_knock_is_not_taken_for_a_message(run_key, hub):
    """A worker that looks whether something waits, and then receives it, must not wait for ever."""
    with closing(links(run_key, 1, hub, peers=[2])) as one:
        port = int(one.address.rsplit(":", 1)[1])
        with socket.create_connection((LOOPBACK, port), DEADLINE_S) as stranger:
            stranger.sendall(b"knock")  # who says nothing is left to wait at the door
            heard, _, _ = zmq.select(list(one._inbox.sockets), [], [], DEADLINE_S)
            assert heard
            assert not one.waiting
            with pytest.raises(CoordinatorLost, match="nothing came"):
                one.receive(0.05)


def test_an_inbox_is_not_taken_for_the_coordinator(run_key, hub):
    """Whoever listens must hold the key of whom the link is meant for."""
    with closing(links(run_key, 1, hub, peers=[2])) as one, closing(links(run_key, 2, hub, peers=[1])) as two:
        two.introduce({1: one.address})
        with closing(
            WorkerLinks(run_key, 2, one.address, peers=(), heartbeat_s=5.0, max_message_bytes=MAX_BYTES, queued=QUEUED)
        ) as misled:
            misled.send(COORDINATOR, [b"for the coordinator"])
            with pytest.raises(CoordinatorLost, match="ended"):
                misled.receive(DEADLINE_S)
            two.send(1, [b"for one"])
            assert received(one) == (2, [b"for one"])


def test_workers_that_share_memory_have_no_inbox(run_key, hub):
    with closing(links(run_key, 1, hub)) as one:
        assert one.address == ""
        one.send(2, [b"nobody"])
        one.send(COORDINATOR, [b"hello"])
        assert events_until(hub, lambda event: True) == [(1, [b"hello"])]
