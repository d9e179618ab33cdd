"""Links over real sockets: who gets in, who a message is from, and how the end of a link is reported."""

import contextlib
import signal
import socket
import threading
import time
from contextlib import closing

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import KeyPair, RunKey
from lwpd_lightning.links.mesh import CoordinatorLost
from lwpd_lightning.links.rendezvous import LOOPBACK
from lwpd_lightning.links.transport import READING, LinkLost, Message
from tests.links.links import (
    DEADLINE_S,
    MAX_BYTES,
    QUEUED,
    Intruder,
    Peer,
    events_until,
    links,
    spoke,
    taken,
)

WORKERS = 4


@pytest.fixture
def run_key():
    return RunKey.generate()


@pytest.fixture
def peers():
    """Processes that were forked before the hub."""
    processes = [Peer(), Peer()]
    yield processes
    for process in processes:
        process.end()


@pytest.fixture
def hub(run_key):
    with closing(make_hub(run_key)) as made:
        yield made


def make_hub(run_key, heartbeat_s=5.0, host=LOOPBACK):
    return Hub(run_key, range(WORKERS), host=host, heartbeat_s=heartbeat_s, max_message_bytes=MAX_BYTES, queued=QUEUED)


def lost(worker):
    return lambda event: event == LinkLost(worker)


def message(*frames, worker):
    return lambda event: event == (worker, list(frames))


def assert_still_serves(hub, run_key, worker=3):
    """A good worker's message arrives and is answered; returns what the hub reported until then."""
    with closing(spoke(run_key, worker, hub)) as good:
        good.send([b"good"])
        seen = events_until(hub, message(b"good", worker=worker))
        hub.send(worker, [b"answer"])
        assert taken(good) == [b"answer"]
    seen += events_until(hub, lost(worker))
    return [event for event in seen if event not in ((worker, [b"good"]), LinkLost(worker))]


# What passes.


@pytest.fixture(scope="module")
def link():
    key = RunKey.generate()
    with closing(make_hub(key)) as hub, closing(spoke(key, 2, hub)) as end:
        yield hub, end


FRAMES = st.lists(st.binary(max_size=300) | st.integers(0, 300_000).map(bytes), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(up=FRAMES.filter(lambda frames: frames != [READING]), down=FRAMES)
def test_frames_arrive_as_they_were_sent(link, up, down):
    hub, end = link
    end.send(up)
    assert events_until(hub, lambda event: True) == [(2, up)]
    hub.send(2, [memoryview(frame) for frame in down])
    assert taken(end) == down


def test_messages_of_one_worker_keep_their_order(link):
    hub, end = link
    sent = [[bytes([i])] for i in range(30)]
    received = []
    for frames in sent:
        end.send(frames)
        if len(received) % 3 == 0:
            received += events_until(hub, lambda event: True)
    while len(received) < len(sent):
        received += events_until(hub, lambda event: True)
    assert received == [(2, frames) for frames in sent]


def test_workers_are_told_apart_by_their_keys(hub, run_key):
    """Whatever a message claims, and whatever routing id its socket chose."""
    lie = Header(Op.SLICE, bytes(16), worker=2).pack()
    liar = Intruder(hub, curve=run_key.worker(1), server_key=run_key.coordinator().public, routing_id=b"worker-2")
    with closing(liar), closing(spoke(run_key, 2, hub)) as honest:
        liar.socket.send_multipart([lie])
        assert events_until(hub, lambda event: True) == [(1, [lie])]
        honest.send([b"true"])
        assert events_until(hub, lambda event: True) == [(2, [b"true"])]
        hub.send(2, [b"for two"])
        assert taken(honest) == [b"for two"]


# What does not.


def no_security(hub, run_key):
    return Intruder(hub)


def key_of_another_run(hub, run_key):
    other = RunKey.generate()
    return Intruder(hub, curve=other.worker(0), server_key=other.coordinator().public)


def right_server_but_unknown_key(hub, run_key):
    return Intruder(hub, curve=RunKey.generate().worker(0), server_key=run_key.coordinator().public)


def fresh_curve_pair(hub, run_key):
    return Intruder(hub, curve=KeyPair(*zmq.curve_keypair()), server_key=run_key.coordinator().public)


def worker_that_the_code_lacks(hub, run_key):
    return Intruder(hub, curve=run_key.worker(WORKERS), server_key=run_key.coordinator().public)


def the_coordinators_public_key(hub, run_key):
    return Intruder(hub, curve=run_key.coordinator(), server_key=run_key.coordinator().public)


@pytest.mark.parametrize(
    "intruder",
    [
        no_security,
        key_of_another_run,
        right_server_but_unknown_key,
        fresh_curve_pair,
        worker_that_the_code_lacks,
        the_coordinators_public_key,
    ],
)
def test_who_lacks_the_runs_key_gets_nothing_through(hub, run_key, intruder):
    with closing(intruder(hub, run_key)) as stranger:
        with contextlib.suppress(zmq.Again):  # where the hub was quicker to refuse it
            stranger.socket.send_multipart([Header(Op.JOIN, run_key.run_id(0), 0).pack(), b"", b""], zmq.NOBLOCK)
        stranger.wait_until_refused()
        hub.send(0, [b"secret"])  # worker 0 has no link: nobody gets it
        assert assert_still_serves(hub, run_key) == []
        assert stranger.socket.poll(0) == 0


@contextlib.contextmanager
def noise(hub, said):
    """Say something that is no ZeroMQ and wait until the hub has hung up; this end stays open meanwhile."""
    with socket.create_connection((LOOPBACK, hub.port), DEADLINE_S) as noisy:
        noisy.sendall(said)
        with contextlib.suppress(OSError):  # where the hub was quicker
            noisy.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while noisy.recv(4096):
                pass
        yield


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n" * 8, b"\xff" * 64, b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"]
)
def test_noise_on_the_port_is_shut_out(hub, run_key, said):
    with noise(hub, said):
        pass
    assert assert_still_serves(hub, run_key) == []


def test_a_refused_link_does_not_end_the_one_that_gets_its_descriptor(run_key, peers):
    """Descriptors are reused at once, while the refused link's end is still to be reported."""
    with closing(make_hub(run_key)) as hub, noise(hub, b"\xff" * 64):
        peers[0].connect(run_key, 0, hub)
        peers[0].send([b"first"])
        assert hub._router.poll(DEADLINE_S * 1000)  # here before the hub first looks at its links
        assert list(hub.events(0.0)) == [Message(0, [b"first"])]
        hub.send(0, [b"answer"])
        assert peers[0].receive() == [b"answer"]


def test_a_worker_does_not_speak_to_another_runs_coordinator(hub):
    with closing(links(RunKey.generate(), 0, hub)) as stranger:
        stranger.send(COORDINATOR, [b"for my coordinator only"])
        with pytest.raises(CoordinatorLost, match="the link to the coordinator ended"):
            stranger.receive(DEADLINE_S)
    assert list(hub.events(0)) == []


def test_a_refused_worker_cannot_send_for_ever(hub):
    """Nor does it miss that it is refused: what finds no room to queue is an error."""
    with closing(links(RunKey.generate(), 0, hub, heartbeat_s=0.5)) as end, pytest.raises(CoordinatorLost):
        list(map(end.send, [COORDINATOR] * 4 * QUEUED, [[b"hello"]] * 4 * QUEUED))


def test_too_long_a_message_ends_the_link_that_sent_it(hub, run_key):
    with closing(spoke(run_key, 0, hub)) as chatty, closing(spoke(run_key, 1, hub)) as modest:
        for worker, end in enumerate((chatty, modest)):
            end.send([b"hello"])
            events_until(hub, message(b"hello", worker=worker))
        chatty.send([b"x", bytes(MAX_BYTES + 1)])
        assert events_until(hub, lost(0)) == [LinkLost(0)]
        almost = bytes(MAX_BYTES - 64)
        modest.send([almost])
        assert events_until(hub, message(almost, worker=1)) == [(1, [almost])]


def test_a_worker_takes_no_longer_message_either(hub, run_key):
    with closing(links(run_key, 0, hub)) as end:
        end.send(COORDINATOR, [b"hello"])
        events_until(hub, message(b"hello", worker=0))
        hub.send(0, [bytes(MAX_BYTES + 1)])
        with pytest.raises(CoordinatorLost, match="link"):
            end.receive(DEADLINE_S)


@pytest.mark.parametrize(("host", "elsewhere"), [(LOOPBACK, False), ("0.0.0.0", True)])
def test_the_hub_listens_where_it_was_told_only(run_key, host, elsewhere):
    with closing(make_hub(run_key, host=host)) as hub:
        with socket.create_connection((LOOPBACK, hub.port), DEADLINE_S):
            pass
        with socket.socket() as probe:
            assert (probe.connect_ex(("127.0.0.2", hub.port)) == 0) == elsewhere


# How links end.


def test_a_closed_link_is_reported_once(hub, run_key):
    end = spoke(run_key, 0, hub)
    end.send([b"bye"])
    end.close()
    seen = events_until(hub, lost(0)) + assert_still_serves(hub, run_key)
    assert seen.count(LinkLost(0)) == 1
    hub.send(0, [b"to nobody"])
    assert assert_still_serves(hub, run_key) == []


def test_a_killed_process_is_reported_once(run_key, peers):
    with closing(make_hub(run_key)) as hub:
        for worker, peer in enumerate(peers):
            peer.connect(run_key, worker, hub)
            peer.send([b"hello"])
            events_until(hub, message(b"hello", worker=worker))
        peers[0].signal(signal.SIGKILL)
        assert events_until(hub, lost(0)) == [LinkLost(0)]
        peers[1].send([b"still here"])
        assert events_until(hub, lambda event: True) == [(1, [b"still here"])]


def test_a_silent_host_is_lost_and_an_idle_one_is_not(run_key, peers):
    """A stopped process sends no heartbeats; the other one says nothing for as long, and lives."""
    stopped, idle = peers
    with closing(make_hub(run_key, heartbeat_s=0.6)) as hub:
        for worker, peer in enumerate(peers):
            peer.connect(run_key, worker, hub, heartbeat_s=0.6)
            peer.send([b"hello"])
            events_until(hub, message(b"hello", worker=worker))
        stopped.signal(signal.SIGSTOP)
        assert events_until(hub, lost(0)) == [LinkLost(0)]
        hub.send(1, [b"there?"])
        assert idle.receive() == [b"there?"]
        idle.send([b"here"])
        assert events_until(hub, lambda event: True) == [(1, [b"here"])]
        stopped.signal(signal.SIGCONT)
        stopped.send([b"back"])
        seen = events_until(hub, message(b"back", worker=0))
        stopped.signal(signal.SIGKILL)
        seen += events_until(hub, lost(0))
        assert LinkLost(1) not in seen


def test_strangers_that_knock_while_nobody_looks_cost_no_worker(run_key, peers):
    """Rank 0 validates: what ZeroMQ reports of links is not read, and heartbeats must not wait for that."""
    beat_s = 0.6
    with closing(make_hub(run_key, heartbeat_s=beat_s)) as hub:
        for worker, peer in enumerate(peers):
            peer.connect(run_key, worker, hub, heartbeat_s=beat_s)
            peer.send([b"hello"])
            events_until(hub, message(b"hello", worker=worker))
        for _ in range(2500):
            with socket.create_connection((LOOPBACK, hub.port), DEADLINE_S):
                pass
        time.sleep(3 * beat_s)  # the fault itself: nobody looks
        assert list(hub.events(0.0)) == []
        for worker, peer in enumerate(peers):
            peer.send([b"still here"])
            assert events_until(hub, message(b"still here", worker=worker)) == [(worker, [b"still here"])]


def test_a_worker_that_reads_nothing_for_long_is_not_lost(run_key):
    """It can be told so much and no more, and hears all that; a heartbeat gets through meanwhile."""
    beat_s, queued, frames = 0.3, 4, [bytes(MAX_BYTES // 2)]
    limits = {"heartbeat_s": beat_s, "max_message_bytes": MAX_BYTES, "queued": queued}
    with closing(Hub(run_key, [1], host=LOOPBACK, **limits)) as hub:
        slow = links(run_key, 1, hub, heartbeat_s=beat_s, queued=queued)
        with closing(slow):
            slow.send(COORDINATOR, [b"hello"])
            events_until(hub, message(b"hello", worker=1))
            for _ in range(3):
                hub.refused.clear()
                while not hub.refused:
                    hub.send(1, frames)
                assert list(hub.events(5 * beat_s)) == []
                for _ in range(2 * queued):
                    assert slow.receive(DEADLINE_S).frames == frames
                assert not slow.waiting
                events_until_reading(hub, 1)


def events_until_reading(hub, worker):
    deadline = time.monotonic() + DEADLINE_S
    while not hub.reads(worker):
        assert list(hub.events(0.1)) == []
        assert time.monotonic() < deadline


def test_who_missed_something_is_noted_until_its_link_ends(hub, run_key):
    with closing(spoke(run_key, 0, hub)) as end:
        end.send([b"hello"])
        events_until(hub, message(b"hello", worker=0))
        assert hub.refused == set()
        while not hub.refused:
            hub.send(0, [bytes(200_000)])
        assert hub.refused == {0}
    events_until(hub, lost(0))
    assert hub.refused == set()


def test_two_links_of_one_worker_both_end_without_harm(hub, run_key):
    """A worker that lost its link connects anew before the end of the old one is noticed."""
    old, new = spoke(run_key, 0, hub), spoke(run_key, 0, hub)
    for end, word in ((old, b"old"), (new, b"new")):
        end.send([word])
        events_until(hub, message(word, worker=0))
    hub.send(0, [b"on its first"])
    assert taken(old) == [b"on its first"]
    old.close()
    replaced = LinkLost(0, used=True, stands=True)
    events_until(hub, lambda event: event == replaced)
    hub.send(0, [b"on the other"])
    assert taken(new) == [b"on the other"]
    new.close()
    assert set(assert_still_serves(hub, run_key)) <= {LinkLost(0)}


def test_who_may_speak_for_a_worker_is_up_to_who_has_the_hub(hub, run_key):
    """A second process of a rank is answered, and takes its place only where it is told to."""
    numbers, first, second = [], spoke(run_key, 0, hub), spoke(run_key, 0, hub)
    with closing(second):
        for end in (first, second):
            end.send([b"hello"])
            while not (events := list(hub.events(DEADLINE_S))):
                pass
            numbers.append(events[0].link)
        hub.answer(numbers[1], [b"not you"])
        hub.send(0, [b"you"])
        assert (taken(first), taken(second)) == ([b"you"], [b"not you"])
        hub.adopt(0, numbers[1])
        hub.send(0, [b"you"])
        assert taken(second) == [b"you"]
        first.close()
        unused = LinkLost(0, used=False, stands=True)
        events_until(hub, lambda event: event == unused)
        hub.answer(numbers[0], [b"to nobody"])


def test_a_worker_learns_that_the_coordinator_went(run_key):
    hub = make_hub(run_key)
    with closing(links(run_key, 0, hub)) as end:
        end.send(COORDINATOR, [b"hello"])
        events_until(hub, message(b"hello", worker=0))
        hub.close()
        with pytest.raises(CoordinatorLost, match="ended"):
            end.receive(DEADLINE_S)


def test_what_was_sent_before_closing_arrives(run_key):
    hub = make_hub(run_key)
    with closing(spoke(run_key, 0, hub)) as end:
        end.send([b"hello"])
        events_until(hub, message(b"hello", worker=0))
        hub.send(0, [b"stop"])
        hub.close()
        assert taken(end) == [b"stop"]


def test_a_worker_does_not_wait_for_ever(hub, run_key):
    with closing(links(run_key, 0, hub)) as end, pytest.raises(CoordinatorLost, match=r"^nothing came .* for 0\.05 s$"):
        end.receive(0.05)


def test_nothing_is_reported_where_nothing_happened(hub):
    assert list(hub.events(0.0)) == []


def test_a_closed_hub_leaves_no_thread(run_key):
    before = set(threading.enumerate())
    make_hub(run_key).close()
    assert set(threading.enumerate()) <= before


def test_closing_ends_even_where_libzmq_does_not(run_key):
    hub = make_hub(run_key)
    with closing(hub.context.socket(zmq.PAIR)):  # libzmq waits for ever while a socket is open
        closed = threading.Thread(target=hub.close, daemon=True)
        closed.start()
        closed.join(DEADLINE_S)
        assert not closed.is_alive()
