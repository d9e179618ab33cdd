"""One host of a testbed speaks, another listens."""

import os
import shutil
import socket

import pytest

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"),
    reason="network namespaces need root and iproute2",
)


def tell(speaker, listener, said, prepare=lambda: None):
    """Send ``said`` between two hosts, each a process of its own; their exit statuses, 0 where it was heard as said.

    ``prepare`` is called by the speaker, on its host.
    """
    listening, told = os.pipe()

    def listen():
        listener.enter()
        with socket.create_server((listener.address, 5000)) as server:
            os.write(told, b"!")
            link, _ = server.accept()
            heard = bytearray()
            while piece := link.recv(65536):
                heard += piece
        return 0 if heard == said else 2

    def speak():
        speaker.enter()
        prepare()
        with socket.create_connection((listener.address, 5000), 10) as link:
            link.sendall(said)
        return 0

    children = [_fork(listen)]
    os.read(listening, 1)
    children.append(_fork(speak))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def _fork(act):
    child = os.fork()
    if not child:
        code = 1
        try:
            code = act()
        finally:
            os._exit(code)
    return child
