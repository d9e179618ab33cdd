"""A process that has imported everything forks what becomes a command, so that a test does not pay for the imports.

Importing torch and Lightning takes a command ten seconds, and what most tests start trains for less than one. What is
forked here differs from ``python -m module`` in nothing that a test looks at: it is a child of the process that asked
for it, with the session, directory, environment, streams and arguments that were asked for, ``__main__`` is the module
or script, signals are as Python leaves them, and the interpreter ends as it always does, so that the exit code is the
same. Commands that the command starts (a sweep its jobs, a job its workers) are forked likewise, from a server of its
own that was forked before the command had a thread or a team of OpenMP.

Three things only a real start shows: what is imported, and in which order; what libraries read from the environment
when they are imported (OMP_NUM_THREADS); and modules that PYTHONPATH hides. Hence each command and each way of starting
has one real start among the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.large_pages import use_large_pages

_ROOT = Path(__file__).parents[1]
# What commands import; the command itself is imported by the process that becomes it.
_IMPORTED = (
    "torch", "lightning.pytorch", "hydra", "wandb", "matplotlib.pyplot", "numba", "scipy.stats", "sklearn.datasets",
    "experiments.job", "experiments.panel", "experiments.report", "experiments.wandb_run", "experiments.progress",
    "experiments.peers", "experiments.data", "experiments.models", "experiments.description", "experiments.drawing",
    "experiments.comparison.find", "experiments.comparison.page", "experiments.comparison.report", "lwpd_lightning",
    "lwpd_lightning.callbacks", "lwpd_lightning.launcher",
)  # fmt: skip
_REQUEST_BYTES = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36
_START = subprocess.Popen
# Python's own, which a job that is run again passes on: -B where PYTHONDONTWRITEBYTECODE is set.
_OPTIONS: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Request:
    """What to become; its three streams come beside it."""

    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    new_session: bool


class Server:
    """The end of a fork server that asks; what it forks becomes a child of the process that does."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._one_at_a_time = channel, threading.Lock()

    def fork(self, request: _Request, streams: list[int]) -> int:
        """Pid of a child of this process that becomes what is requested."""
        with self._one_at_a_time, _adopting():
            socket.send_fds(self._channel, [pickle.dumps(vars(request))], streams)
            told = self._channel.recv(_REQUEST_BYTES)
        if not told:
            raise RuntimeError("the fork server has ended")
        return int(told)

    def close(self) -> None:
        """End the server; what it has forked lives on."""
        self._channel.close()


class ForkedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """A Popen that has commands of this Python forked; all others are started as ever."""

    server: Server

    # Nothing public lies between a Popen's pipes and its start; the first seven parameters have been these since 3.2.
    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        shell, (p2cread, _, _, c2pwrite, _, errwrite), new_session = rest[2], rest[3:9], rest[14]
        args = [args] if isinstance(args, str | os.PathLike) else [os.fspath(arg) for arg in args]
        if preexec_fn or pass_fds or shell or executable or not _is_understood(args):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        request = _Request(
            args[1:], os.path.abspath(cwd or os.getcwd()), dict(os.environ if env is None else env), new_session
        )
        streams = [own if own != -1 else standard for standard, own in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = self.server.fork(request, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*rest[3:9])
        return None


@functools.cache
def server() -> Server:
    """The server of this process, which is started, for real, when it is first asked for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, *_OPTIONS, "-m", "tests.fork_server", str(theirs.fileno())]
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    process = _START(
        command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            ours.close()
            process.wait()

    atexit.register(end)
    return Server(ours)


def _is_understood(args: list[str]) -> bool:
    if args[0] != sys.executable:
        return False
    words = [arg for arg in _without_options(args[1:]) if arg != "-u"]
    return len(words) > 1 if words[:1] == ["-m"] else bool(words) and not words[0].startswith("-")


def _without_options(arguments: list[str]) -> list[str]:
    """What is left of a command's arguments without the options that the server has been started with, too."""
    given = len(_OPTIONS)
    return arguments[given:] if arguments[:given] == _OPTIONS else arguments


@contextlib.contextmanager
def _adopting():  # type: ignore[no-untyped-def]
    """For a moment, a descendant of this process whose parent ends becomes its child."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def main() -> None:
    """Import, serve, and, in whatever is forked, become the command."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    for name in _IMPORTED:
        importlib.import_module(name)
    plain = [place for place in sys.path[1:] if place not in os.environ["PYTHONPATH"].split(os.pathsep)]
    # Forking ends the threads that OpenBLAS starts where it is loaded; nothing else may have started any.
    os.waitpid(_forked(lambda: None), 0)
    gc.collect()
    gc.freeze()
    use_large_pages()
    while True:
        request = _serve(channel)  # comes back in what is to become a command
        channel.close()
        ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            break
        ours.close()  # this is the command's own server
    channel.close()
    ForkedPopen.server = Server(ours)
    subprocess.Popen = ForkedPopen  # type: ignore[misc]
    os.register_at_fork(after_in_child=functools.partial(_start_for_real, ours, os.getpid()))
    _become(request, plain)


def _start_for_real(channel: socket.socket, owner: int) -> None:
    """What a command forks is not the parent of its server, and must not keep it alive."""
    subprocess.Popen = _START  # type: ignore[misc]
    channel.close()


def _serve(channel: socket.socket) -> _Request:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands
    Path("/proc/self/comm").write_text("fork-server")
    while True:
        message, streams, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 3)
        if not message:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "a thread of the server would be missing in what it forks"
        begins, begin = os.pipe()
        named, name = os.pipe()
        between = os.fork()
        if not between:
            if os.fork():
                os._exit(0)
            request = _Request(**pickle.loads(message))
            if request.new_session:
                os.setsid()
            os.write(name, str(os.getpid()).encode())  # whoever reads it finds the command in its session
            os.close(begin)
            os.read(begins, 1)
            for end in (begins, named, name):
                os.close(end)
            return _prepared(request, streams)
        os.waitpid(between, 0)  # from here on who asked is the parent
        channel.send(os.read(named, 32))
        os.write(begin, b"!")
        for end in (begins, begin, named, name, *streams):
            os.close(end)


def _prepared(request: _Request, streams: list[int]) -> _Request:
    """Be in the directory, environment and streams of the command."""
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    return request


def _become(request: _Request, plain: list[str]) -> None:
    import numpy as np
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    from lwpd_lightning import command

    Path("/proc/self/comm").write_text("python")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    np.random.seed()
    torch.set_num_threads(1)  # as in all tests: models here have a few parameters
    rank_zero_only.rank = _get_rank() or 0  # read where Lightning is imported
    command._STARTED_IN = os.getcwd()
    arguments = _without_options(request.arguments)
    unbuffered = arguments[0] == "-u"
    if unbuffered:
        arguments = arguments[1:]
    sys.stdout = sys.__stdout__ = _standard_output(unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))  # type: ignore[misc]
    sys.orig_argv = [sys.executable, *request.arguments]
    added = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    importlib.invalidate_caches()
    if arguments[0] == "-m":
        module = arguments[1]
        sys.path[:] = [os.getcwd(), *added, *plain]
        sys.argv = arguments[1:]
        for known in (module, f"{module}.__main__"):
            sys.modules.pop(known, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        script = os.path.abspath(arguments[0])
        sys.path[:] = [os.path.dirname(script), *added, *plain]
        sys.argv = arguments
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = script  # while sys.argv[0] is as typed; runpy would make them one
        exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)


def _standard_output(unbuffered: bool) -> io.TextIOWrapper:
    """As Python would have opened it; standard error, to which others have references, is the same for all commands."""
    raw = io.FileIO(1, "wb", closefd=False)
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
    kept = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "newline": "\n"}
    return io.TextIOWrapper(buffer, line_buffering=raw.isatty(), write_through=unbuffered, **kept)


def _forked(act) -> int:  # type: ignore[no-untyped-def]
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    return child


if __name__ == "__main__":
    main()
