"""NumPy's global generator, kept and put back in microseconds where nobody draws from it.

`numpy.random.get_state` and `set_state` take 0.2 ms each, and a training step that draws from it is rare. So its memory
is looked at first: the generator's, which NumPy documents, and the object's around it, in which a Gaussian may wait.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.random import MT19937

_KEYS = 624  # NumPy's mt19937.h: so many uint32, and the position among them, an int
_KEY_BYTES, _BYTES = 4 * _KEYS, 4 * _KEYS + 4
# An object begins with how many refer to it, which changes with every look, and with its type.
_HEAD = object.__basicsize__
_LOOKS = sys.implementation.name == "cpython"


class NumPyState(NamedTuple):
    """Where the generator is.

    Attributes:
        memory: the generator's; None: it is of another kind.
        whole: what `numpy.random.get_state` gives; None: no Gaussian waits, and ``memory`` is all.
    """

    memory: bytes | None
    whole: Any


# What the memory was when last it was known that no Gaussian waits: the generator's, and the object's around it.
_plain: tuple[bytes, bytes] | None = None


def numpy_state() -> NumPyState:
    """Where NumPy's global generator is."""
    global _plain
    now = _memory()
    if now is not None and now == _plain:
        return NumPyState(now[0], None)
    whole = np.random.get_state(legacy=False)
    if now is None or whole["has_gauss"]:
        return NumPyState(None, whole)
    _plain = now
    return NumPyState(now[0], None)


def set_numpy_state(state: NumPyState) -> None:
    """Put NumPy's global generator back to where it was."""
    global _plain
    if state.memory is None:
        np.random.set_state(state.whole)
        return
    now = _memory()
    if now is not None and now == _plain:
        ctypes.memmove(np.random.mtrand._rand._bit_generator.ctypes.state_address, state.memory, _BYTES)
        _plain = state.memory, now[1]
    else:
        keys = np.frombuffer(state.memory, np.uint32, _KEYS)
        position = int.from_bytes(state.memory[_KEY_BYTES:], sys.byteorder)
        np.random.set_state(("MT19937", keys, position, 0, 0.0))
        _plain = _memory()


def seed_numpy(seed: int) -> None:
    """Seed NumPy's global generator; only the lowest 32 bits count."""
    global _plain
    np.random.seed(seed & 0xFFFF_FFFF)
    _plain = _memory()


def _memory() -> tuple[bytes, bytes] | None:
    """Of the generator and of the object around it; None where they are not known to be laid out so."""
    around = np.random.mtrand._rand
    generator = around._bit_generator
    if not _LOOKS or type(generator) is not MT19937:
        return None
    held = ctypes.string_at(id(around) + _HEAD, type(around).__basicsize__ - _HEAD)
    return ctypes.string_at(generator.ctypes.state_address, _BYTES), held
