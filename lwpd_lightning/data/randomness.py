"""Seeds from keys, and code that draws from the global random generators without disturbing anybody else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from lwpd_lightning.data.numpy_state import numpy_state, seed_numpy, set_numpy_state


def derive_seed(*key: int) -> int:
    """A 63-bit seed from a tuple of integers; different tuples give unrelated seeds.

    >>> derive_seed(0, 1) == derive_seed(0, 1) != derive_seed(1, 0)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def seed_of_the_run() -> int:
    """The seed of ``seed_everything``, or a random one."""
    return int(os.environ.get("PL_GLOBAL_SEED") or secrets.randbits(32))


def seed_everything_locally(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators."""
    random.seed(seed)
    seed_numpy(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Put Python's, NumPy's and torch's CPU generators back as they were."""
    state = _global_state()
    try:
        yield
    finally:
        _set_global_state(state)


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Let Python's, NumPy's and torch's generators, the device's too, start from ``seed`` and go on as if nothing had
    happened afterwards."""
    on_device = torch.random.fork_rng([device]) if device.type == "cuda" else nullcontext()
    with isolated_rng(), on_device:
        seed_everything_locally(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


class Randomness:
    """A random stream of its own for code that draws from the global generators, a piece at a time.

    Args:
        seed: of all generators, when the first piece runs.
        generators: further ones that the code draws from.
    """

    def __init__(self, seed: int, generators: Sequence[torch.Generator] = ()) -> None:
        self._seed, self._generators = seed, generators
        self._state: tuple[Any, list[torch.Tensor]] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a piece; what others draw goes on afterwards as if nothing had happened."""
        others = _global_state(), [generator.get_state() for generator in self._generators]
        if self._state is None:
            seed_everything_locally(self._seed)
            for generator in self._generators:
                generator.manual_seed(self._seed)
        else:
            self._set(*self._state)
        try:
            yield
        finally:
            self._state = _global_state(), [generator.get_state() for generator in self._generators]
            self._set(*others)

    def _set(self, state: Any, states: list[torch.Tensor]) -> None:
        _set_global_state(state)
        for generator, own in zip(self._generators, states, strict=True):
            generator.set_state(own)


def position(device: torch.device) -> tuple[object, ...]:
    """Where Python's, NumPy's and torch's generators are, the device's too: equal as long as nothing is drawn."""
    python, numpy, *of_torch = _global_state()
    if device.type == "cuda":
        of_torch.append(torch.cuda.get_rng_state(device))
    whole = json.dumps(numpy.whole, default=lambda array: array.tolist())
    return python, numpy.memory, whole, *(state.numpy().tobytes() for state in of_torch)


def _global_state() -> Any:
    return random.getstate(), numpy_state(), torch.get_rng_state()


def _set_global_state(state: Any) -> None:
    random.setstate(state[0])
    set_numpy_state(state[1])
    torch.set_rng_state(state[2])
