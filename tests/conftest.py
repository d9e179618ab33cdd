import gc
import os
import resource
import signal
import sys
import threading
import time
import warnings

import pytest
import pytest_timeout
import torch

from lwpd_lightning.coding import kernels
from lwpd_lightning.testing.job import _processes
from tests.large_pages import use_large_pages

_STACKS_BEFORE_S, _STUCK_AFTER_S, _LOST_AFTER_S = 2.0, 30.0, 60.0


def pytest_configure(config):
    """Nothing can be forked where torch sees a GPU: only ``-m cuda`` shows it.

    Models here have a few parameters: a second thread only waits, busily, for up to twenty times the CPU time.
    """
    torch.set_num_threads(1)
    config.option.loadscopereorder = False  # of pytest-xdist, which would begin with the files of many, short, tests
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if getattr(config.option, "numprocesses", None):
        kernels.compiled()  # kept on disk: else each process of pytest-xdist would spend twenty seconds on it, at once
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, which is started by -c: no script to run once more
        sys.argv = config.workerinput["mainargv"]
        sys.modules["__main__"].__file__ = sys.argv[0]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("real_start"):
            item.add_marker(pytest.mark.slow)
    # Files with slow tests first: no process ends long after the others.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What has been imported lives for ever: neither this process nor the ranks it forks look for garbage there."""
    gc.collect()
    gc.freeze()
    use_large_pages()


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    """Fits in tests leave the process as they found it, and do not fill the report with Lightning's advice."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    assert torch.get_num_threads() == threads


@pytest.fixture
def few_files(monkeypatch):
    """No more than 1,024 open files, as where the hard limit is that low, which could not be put back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("lwpd_lightning.links.hub.make_room", lambda *needs: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item, settings):
    """A fit that hangs fails alone, and says where its ranks are: the alarm interrupts rank 0 where it runs Python.

    Where it waits in C++ for ranks, they are killed; only what still hangs then ends the run (or, with pytest-xdist,
    the one of its processes that runs this test).
    """
    set_timer = yield
    over, deadline = threading.Event(), time.monotonic() + settings.timeout
    watch = threading.Thread(target=_watch, args=(item, settings, deadline, over), name="timeout", daemon=True)
    watch.start()
    cancel = item.cancel_timeout

    def cancel_both():
        over.set()
        watch.join()
        cancel()
        if time.monotonic() > deadline:
            _signal_ranks(signal.SIGKILL)  # at its end, the run would wait for them

    item.cancel_timeout = cancel_both
    return set_timer


def _watch(item, settings, deadline, over):
    for after_s, act in (
        (-_STACKS_BEFORE_S, lambda: _signal_ranks(signal.SIGUSR1)),  # each prints its stack
        (_STUCK_AFTER_S, lambda: _signal_ranks(signal.SIGKILL)),
        (_LOST_AFTER_S, lambda: pytest_timeout.timeout_timer(item, settings)),
    ):
        if over.wait(max(0.0, deadline + after_s - time.monotonic())):
            return
        act()


def _signal_ranks(signum):
    for pid, name, _ in _processes():
        if name.startswith("lwpd-rank-") and _parent(pid) == os.getpid():
            print(f"{name} ({pid}) is there: {signum.name}", file=sys.stderr, flush=True)
            os.kill(pid, signum)


def _parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(") ", 1)[1].split()[1])
