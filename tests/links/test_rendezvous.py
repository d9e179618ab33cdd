"""Ranks find the coordinator of their own fit, or are told what they waited for."""

import logging
import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.rendezvous import LOOPBACK, Rendezvous, listen

SOON_S = 0.3
TO_LOOK_S = 2.0  # at what stands there, on a busy machine
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


# The store is anybody's who reaches it.


def stranger(port):
    return TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=20))


def in_thread(deed):
    found = []
    thread = threading.Thread(target=lambda: found.append(deed()), daemon=True)
    thread.start()
    return thread, found


def waits_on(thread, caplog, name):
    """It has noticed, and goes on waiting."""
    for _ in range(200):
        if f"The store's {name} is not signed" in caplog.text:
            break
        thread.join(0.05)
    assert f"The store's {name} is not signed" in caplog.text
    assert thread.is_alive()


ELSEWHERE = "7 tcp://10.6.6.6:666"


@pytest.mark.parametrize("written", [ELSEWHERE, 64 * "0" + ELSEWHERE, b"\xff" * 80, ""])
def test_where_a_stranger_redirects_a_worker_it_waits_for_rank_0(listener, caplog, written):
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    stranger(port).set("lwpd/0/0/coordinator/0", written)
    with caplog.at_level(logging.WARNING):
        worker, found = in_thread(join(port).coordinator)
        waits_on(worker, caplog, "lwpd/0/0/coordinator/0")
    host.announce("tcp://127.0.0.1:1", 5)
    worker.join(20)
    assert found == [("tcp://127.0.0.1:1", 5)]
    assert caplog.text.count("is not signed") == 1


def test_what_rank_0_said_of_one_thing_does_not_stand_for_another(listener, caplog):
    """A stranger copies what it can read."""
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    host.announce("tcp://127.0.0.1:1", 5, segment=0)
    thief = stranger(port)
    thief.set("lwpd/0/0/coordinator/1", thief.get("lwpd/0/0/coordinator/0"))
    thief.set("lwpd/0/1/coordinator/0", thief.get("lwpd/0/0/coordinator/0"))
    with pytest.raises(TimeoutError, match="is not signed by its key"):
        join(port, timeout_s=TO_LOOK_S).coordinator(segment=1)
    with pytest.raises(TimeoutError, match="is not signed by its key"):
        join(port, generation=1, timeout_s=TO_LOOK_S).coordinator()


def test_a_forged_outcome_is_not_believed(listener, caplog):
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    stranger(port).set("lwpd/0/entry/3", '{"returned": null}')
    worker, found = in_thread(lambda: join(port).told(3, 1))
    waits_on(worker, caplog, "lwpd/0/entry/3")
    host.tell(3, "{}")
    worker.join(20)
    assert found == ["{}"]


def test_rank_0_stays_for_readers_whom_a_stranger_claims_to_be(listener, caplog):
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    stranger(port).set("lwpd/0/read/0/1", "")
    leaving, _ = in_thread(lambda: host.await_readers(0, [1], 20.0))
    waits_on(leaving, caplog, "lwpd/0/read/0/1")
    host.tell(0, "{}")
    assert join(port).told(0, 1) == "{}"
    leaving.join(20)
    assert not leaving.is_alive()


def test_a_rank_of_another_key_says_so(listener, caplog):
    port = listener.getsockname()[1]
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    host.announce("tcp://127.0.0.1:1", 5)
    other = Rendezvous.join(LOOPBACK, port, 0, TO_LOOK_S, RunKey.generate())
    with pytest.raises(TimeoutError, match="is not signed by its key"):
        other.coordinator()
    assert "a rank has another LWPD_RUN_KEY" in caplog.text


def test_whose_last_look_finds_nothing_says_what_an_earlier_one_found(listener, caplog):
    port, name = listener.getsockname()[1], "lwpd/0/0/coordinator/0"
    host = Rendezvous.host(listener, 0, 20.0, KEY)
    other = stranger(port)
    other.set(name, ELSEWHERE)

    def wait():
        with pytest.raises(TimeoutError) as refusal:
            join(port, timeout_s=TO_LOOK_S).coordinator()
        return str(refusal.value)

    waiting, found = in_thread(wait)
    waits_on(waiting, caplog, name)
    other.delete_key(name)
    waiting.join(20)
    assert found == [f"rank 0 did not start its fit within 2 s: {name} is not signed by its key"]
    del host
