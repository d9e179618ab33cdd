"""Reads what a user gave: numbers of any library become Python's, and what only looks like one is refused."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np
import torch

from lwpd_lightning.rule.norms import NormLimit

# Seconds that ZeroMQ's heartbeats and torch's store can be told: milliseconds in 32 bits, and a timedelta.
HEARTBEATS, TIMEOUTS = (0.01, 1e6), (0.001, 1e9)


def shown(value: object) -> str:
    """A refused value on one short line."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 60 else f"{words[:57]}..."


def _index(value: SupportsIndex) -> int:
    if isinstance(value, bool) or getattr(value, "dtype", None) is torch.bool:
        raise TypeError("a truth value counts nothing")
    return operator.index(value)


def whole(name: str, value: SupportsIndex | None, meaning: str, works: str) -> int | None:
    """An integer of any library, or None; raises ValueError for anything else.

    Args:
        name: of the setting.
        value: what was given.
        meaning: what it counts.
        works: what would do.
    """
    try:
        return None if value is None else _index(value)
    except TypeError:
        raise ValueError(f"{name}={shown(value)} is no {meaning}: use {works}.") from None


def truth(name: str, given: object) -> bool:
    """A truth value of any library; raises ValueError for anything else."""
    if isinstance(given, bool | np.bool_):
        return bool(given)
    raise ValueError(f"{name}={shown(given)} is neither true nor false: use True or False.")


def refuse_unknown(name: str, given: object, choices: Sequence[str | None]) -> None:
    """Raise ValueError for what is not among the choices, with all of them."""
    if not isinstance(given, str | None) or given not in choices:
        raise ValueError(f"{name}={shown(given)} is unknown: use one of {', '.join(map(repr, choices))}.")


def bounds(given: Iterable[SupportsIndex] | None) -> tuple[int, int] | None:
    """Two integers of any library, or None; raises ValueError for anything else."""
    if given is None:
        return None
    try:
        least, most = map(_index, given)
    except (TypeError, ValueError):
        raise ValueError(
            f"wait_for_bounds={shown(given)} are no two numbers of codewords: use two integers (least, most)."
        ) from None
    return least, most


def seconds(name: str, given: object, least: float, most: float) -> float:
    """A duration from ``least`` to ``most``, as a number of any library; raises ValueError for anything else."""
    if isinstance(given, numbers.Real) and not isinstance(given, bool) and least <= float(given) <= most:
        return float(given)
    raise ValueError(
        f"{name}={shown(given)} is no duration: use a positive number of seconds, {least:g} to {most:.0f}."
    )


def norm_limit(given: object) -> float | str | None:
    """A bound on norms, as `NormLimit.read` takes it, or None; raises ValueError for anything else."""
    if given is None or (isinstance(given, str | numbers.Real) and NormLimit.read(given) is not None):
        return given if given is None or isinstance(given, str) else float(given)
    raise ValueError(
        f"max_codeword_norm={shown(given)} is no bound on norms: use a positive number, a multiple above 1 of the "
        "median as '10x', or None."
    )
