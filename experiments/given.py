"""What settings of an experiment may be: asked of a composed configuration, and of whoever is made from it.

Nothing here needs torch, so that a word or a number is refused before it is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

from .processes import as_typed


def is_whole(given: object) -> TypeGuard[int]:
    """True and false are numbers too, in Python."""
    return isinstance(given, int) and not isinstance(given, bool)


def is_number(given: object) -> TypeGuard[float]:
    """A whole one or not, and no NaN.

    >>> [is_number(given) for given in (1, 0.5, True, "high", None, float("nan"))]
    [True, True, False, False, False, False]
    """
    return isinstance(given, int | float) and not isinstance(given, bool) and not math.isnan(given)


def refuse_target(value: Any, mode: Any) -> None:
    """Raise ValueError for a target that no metric can be held against."""
    if not is_number(value):
        raise ValueError(f"target.value={as_typed(value)} is no number: use one in the metric's unit, such as 0.9.")
    if mode not in ("min", "max"):
        raise ValueError(f"target.mode={as_typed(mode)} is unknown: use min or max.")


def refuse_share(name: str, share: Any) -> None:
    """Raise ValueError for a share of the data, held out for validation, that leaves nothing on one side."""
    if not is_number(share) or not 0 < share < 1:
        raise ValueError(f"{name}={as_typed(share)} leaves one split empty: use a number between 0 and 1.")


def refuse_batch(batch_size: Any, parts: int, whose: str) -> None:
    """Raise ValueError for a batch that is none, or that cannot be cut into so many parts.

    Args:
        batch_size: `data.batch_size`.
        parts: into which every batch is cut.
        whose: the parts in words.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"data.batch_size={as_typed(batch_size)} is no number of samples: use a multiple of {parts}.")
    if batch_size % parts:
        raise ValueError(f"data.batch_size={batch_size} is not divisible by {whose}: use a multiple of {parts}.")


def refuse_widths(**given: Any) -> None:
    """Raise ValueError for sizes of a model of which it cannot be made, or not learn: 0 units pass nothing on.

    Args:
        given: settings of `model`, each a number or several.

    >>> refuse_widths(hidden=[16, 0])
    Traceback (most recent call last):
    ValueError: model.hidden=[16, 0] is no size of a model: use whole numbers of 1 or more.
    """
    for name, sizes in given.items():
        several = not isinstance(sizes, str) and isinstance(sizes, Iterable)
        if not all(is_whole(size) and size >= 1 for size in (sizes if several else [sizes])):
            shown = f"[{', '.join(map(as_typed, sizes))}]" if several else as_typed(sizes)
            works = "whole numbers" if several else "a whole number"
            raise ValueError(f"model.{name}={shown} is no size of a model: use {works} of 1 or more.")
