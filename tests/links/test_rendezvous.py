"""Ranks find the coordinator of their own fit, or are told what they waited for."""

import threading

import pytest

from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.rendezvous import LOOPBACK, Rendezvous, listen

SOON_S = 0.3
KEY = RunKey.generate()


@pytest.fixture
def listener():
    with listen(LOOPBACK, 0) as listening:
        yield listening


def join(port, generation=0, timeout_s=20.0):
    return Rendezvous.join(LOOPBACK, port, generation, timeout_s, KEY)


def test_workers_find_the_announced_coordinator_and_seed(listener):
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, SOON_S, KEY)
    host.announce("tcp://10.0.0.1:4711", 2**63 - 1)
    assert [join(port).coordinator() for _ in range(3)] == [("tcp://10.0.0.1:4711", 2**63 - 1)] * 3


def test_a_worker_that_came_first_waits(listener):
    """It connects while the socket only listens, before rank 0 serves."""
    port, found = listener.getsockname()[1], []
    worker = threading.Thread(target=lambda: found.append(join(port).coordinator()))
    worker.start()
    host = Rendezvous.host(listener, 0, SOON_S, KEY)
    host.announce("tcp://127.0.0.1:1", 5)
    worker.join(30)
    assert found == [("tcp://127.0.0.1:1", 5)]


def test_generations_do_not_mix(listener):
    port = listener.getsockname()[1]
    first = Rendezvous.host(listener, 0, SOON_S, KEY)
    first.announce("tcp://127.0.0.1:1", 1)
    with pytest.raises(TimeoutError):
        join(port, generation=1, timeout_s=SOON_S).coordinator()
    join(port, generation=1).announce("tcp://127.0.0.1:2", 2)
    assert join(port, generation=1).coordinator() == ("tcp://127.0.0.1:2", 2)
    assert join(port, generation=0).coordinator() == ("tcp://127.0.0.1:1", 1)


def test_a_timeout_says_what_was_waited_for(listener):
    port = listener.getsockname()[1]
    store = Rendezvous.host(listener, 0, SOON_S, KEY)
    with pytest.raises(TimeoutError, match=r"^rank 0 did not start its fit within 0\.3 s$"):
        join(port, timeout_s=SOON_S).coordinator()
    del store


def test_a_store_that_nobody_opened_is_named():
    with listen(LOOPBACK, 0) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        TimeoutError, match=rf"^rank 0 did not open its store at 127\.0\.0\.1 port {port} within 0\.3 s$"
    ):
        join(port, timeout_s=SOON_S)


def test_a_store_that_is_gone_is_no_timeout(listener):
    port = listener.getsockname()[1]
    stores = [Rendezvous.host(listener, 0, SOON_S, KEY)]
    worker = join(port, timeout_s=60.0)
    stores.clear()
    with pytest.raises(ConnectionError, match="rank 0 ended"):
        worker.coordinator()


def test_listening_takes_any_free_port():
    with listen(LOOPBACK, 0) as one, listen(LOOPBACK, 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1]
