"""Strangers' connections, real ones, leave a process the files that it needs, and its peers their links."""

import contextlib
import multiprocessing
import os
import resource
import socket
import threading
import time
from contextlib import ExitStack, closing

import pytest

from lwpd_lightning.links.door import Door
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.rendezvous import LOOPBACK, Rendezvous, listen
from lwpd_lightning.links.room import KEPT_BY_STORE, free_files
from tests.links.links import DEADLINE_S, MAX_BYTES, QUEUED, Peer, events_until

STRANGERS = 1024


@pytest.fixture
def crowd():
    """Processes, forked before anything else, that hold as many idle connections as they are told to."""
    made = [Crowd(), Crowd()]
    yield made
    for one in made:
        one.end()


class Crowd(Peer):
    """A stranger's process: connects without a word, and stays until told to go."""

    def __init__(self):
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_knock, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def knock(self, port, count, word):
        """``word``: what each says, and then nothing more."""
        return self._tell("knock", port, count, word)

    def leave(self):
        return self._tell("leave")


def _knock(pipe):
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * STRANGERS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    while True:
        verb, *args = pipe.recv()
        if verb == "knock":
            port, count, word = args
            for _ in range(count):
                stranger = socket.socket()
                held.append(stranger)
                time.sleep(0.0005)
                stranger.settimeout(0.004)
                with contextlib.suppress(OSError):  # who is dropped goes on knocking
                    stranger.connect((LOOPBACK, port))
                    stranger.sendall(word)
            pipe.send(None)
        else:
            for stranger in held:
                stranger.close()
            held.clear()
            pipe.send(None)


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_shut_door_drops_who_knocks_and_an_open_one_lets_it_in_later():
    with listen(LOOPBACK, 0) as listening, ExitStack() as held:
        port = listening.getsockname()[1]
        keep = free_files() - 30
        with closing(Door(listening.fileno(), keep, "a test")) as door, socket.socket() as late:
            files = [held.enter_context(open(os.devnull)) for _ in range(40)]
            with socket.create_connection((LOOPBACK, port), DEADLINE_S) as early:
                early.sendall(b"here")  # it is looked at when somebody comes
                until(lambda: door._shut)
                late.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    late.connect((LOOPBACK, port))
                for file in files:
                    file.close()
                until(lambda: not door._shut)
                with socket.create_connection((LOOPBACK, port), DEADLINE_S):
                    pass


def test_a_closed_door_leaves_no_file_nor_thread_and_the_socket_open():
    with listen(LOOPBACK, 0) as listening:
        files, threads = free_files(), set(threading.enumerate())
        door = Door(listening.fileno(), 10**7, "a test")
        with socket.create_connection((LOOPBACK, listening.getsockname()[1]), DEADLINE_S) as knocking:
            knocking.sendall(b"here")
            until(lambda: door._shut)
        door.close()
        door.close()
        assert (free_files(), set(threading.enumerate())) == (files, threads)
        with socket.create_connection((LOOPBACK, listening.getsockname()[1]), DEADLINE_S):
            pass


def test_a_door_closes_though_a_fork_has_its_files_and_is_not_closed_by_that():
    listening, (ends, end) = listen(LOOPBACK, 0), os.pipe()
    door = Door(listening.fileno(), 0, "a test")
    child = os.fork()
    if not child:
        door.close()
        os.close(end)
        os.read(ends, 1)
        os._exit(0)
    assert door._watching.is_alive()
    closing = threading.Thread(target=door.close, daemon=True)
    closing.start()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    os.close(end)
    os.waitpid(child, 0)
    listening.close()


@pytest.mark.parametrize("word", [b"", b"\xff"], ids=["silent", "speaking"])
def test_a_thousand_idle_strangers_leave_files_and_links(crowd, few_files, word):
    """At the exchange and at the store, of 1,024 files: links hold, a file opens, and all is flat afterwards."""
    run_key, peer = RunKey.generate(), Peer()
    listener = listen(LOOPBACK, 0)
    hub = Hub(run_key, range(2), host=LOOPBACK, heartbeat_s=1.0, max_message_bytes=MAX_BYTES, queued=QUEUED)
    store = Rendezvous.host(listener, 0, DEADLINE_S, run_key)
    doors, port = (hub._door, store._door), int(store._store.port)
    with closing(hub):
        peer.connect(run_key, 0, hub, 1.0)
        peer.send([b"hello"])
        events_until(hub, lambda event: event == (0, [b"hello"]))
        lowest = before = free_files()
        crowd[0].knock(hub.port, STRANGERS, word)
        crowd[1].knock(port, STRANGERS, word)
        deadline = time.monotonic() + 3.0  # three heartbeats of the fault itself
        while time.monotonic() < deadline:
            lowest = min(lowest, free_files())
            assert list(hub.events(0.01)) == []
            with open(os.devnull):
                pass
        if word:
            assert doors[0]._shut or doors[1]._shut
            assert lowest < KEPT_BY_STORE
        else:
            assert before - lowest < 16
        peer.send([b"still here"])
        assert events_until(hub, lambda event: True) == [(0, [b"still here"])]
        for one in crowd:
            one.leave()
        until(lambda: before - free_files() < 8)
        until(lambda: not any(door._shut for door in doors))
        peer.end()
        newcomer = Rendezvous.join(LOOPBACK, port, 0, DEADLINE_S, run_key)
        store.announce("tcp://127.0.0.1:1", 5)
        assert newcomer.coordinator() == ("tcp://127.0.0.1:1", 5)
