"""Keeps strangers' connections from taking the files that a process needs: a full house takes no more of them.

Whoever accepts a connection (libzmq, torch's store) cannot be told to leave some: one that proves nothing costs a file
until the handshake's time is over, and the store keeps it for as long as the stranger likes. So the kernel is told to
keep to itself who says nothing, as no peer does, and to drop what knocks while few files are left. Connections that
stand feel nothing of it, and who was dropped knocks again by itself, a second later and then ever more seldom.

A thread looks, so that who comes faster than some thousand times a second may still take all: `room` keeps free what
some hundredths of a second of that take.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import socket
import struct
import sys
import threading
import time

from lwpd_lightning.links.room import free_files

log = logging.getLogger(__name__)

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)  # a filter of one instruction: keep 0 bytes
# For so long a connection that says nothing is the kernel's, and takes no file.
_SILENT_S = 600
# Between two looks: while somebody knocks, and while the door is shut. Where nobody has for a while, nobody looks.
_LOOK_S, _SHUT_LOOK_S, _QUIET_S = 0.002, 0.05, 0.5
# So many more files must be free before it opens again.
_SLACK = 16


class Door:
    """Watches one listening socket until it is closed. Does nothing where the kernel has no such filters.

    Args:
        listening: file descriptor of the listening socket; stays the caller's.
        keep_free: shut while fewer files than this may still be opened.
        whose: what listens there, in words.
    """

    def __init__(self, listening: int, keep_free: int, whose: str) -> None:
        self._keep_free, self._whose, self._shut = keep_free, whose, False
        self._socket = socket.socket(fileno=os.dup(listening))
        self._socket.setblocking(False)
        self._wake, self._woken = os.pipe()
        self._owner = os.getpid()
        self._watching = threading.Thread(target=self._watch, name="links-door", daemon=True)
        if sys.platform == "linux":
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _SILENT_S)
            self._watching.start()

    def close(self) -> None:
        """Watch no more."""
        if self._socket.fileno() < 0:
            return
        if self._owner == os.getpid():  # a fork has neither the thread nor any say
            os.write(self._woken, b".")  # not by its end: processes that were forked meanwhile hold it open
            if self._watching.ident is not None:
                self._watching.join()
        os.close(self._woken)
        os.close(self._wake)
        self._socket.close()

    def _watch(self) -> None:
        with select.epoll() as knocks:
            # Edge-triggered: it is not this thread that accepts.
            knocks.register(self._socket.fileno(), select.EPOLLIN | select.EPOLLET)
            knocks.register(self._wake, select.EPOLLIN)
            quiet_at = 0.0
            while True:
                now = time.monotonic()
                came = knocks.poll(_SHUT_LOOK_S if self._shut else None if now > quiet_at else _LOOK_S)
                if any(file == self._wake for file, _ in came):
                    break
                if came:  # which may still wait to be accepted
                    quiet_at = time.monotonic() + _QUIET_S
                    time.sleep(_LOOK_S)
                self._look()
        if self._shut:
            self._open()

    def _look(self) -> None:
        free = free_files()
        if not self._shut and free < self._keep_free:
            code = ctypes.create_string_buffer(_DROP_ALL)
            program = struct.pack("HL", 1, ctypes.addressof(code))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            except OSError:
                return
            self._shut = True
            self._turn_away()
            log.warning("Only %d files may still be opened: %s takes no new connection for now", free, self._whose)
        elif self._shut and free >= self._keep_free + _SLACK:
            self._open()
            log.warning("%d files may be opened again: %s takes new connections", free, self._whose)

    def _turn_away(self) -> None:
        """Who has knocked already would still be let in."""
        with contextlib.suppress(OSError):
            while True:
                self._socket.accept()[0].close()

    def _open(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._shut = False
