"""Choices of a group that there are not: Hydra lists them one a line, and says first where it looked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .names import CONFIG_PATH

# With these there may be files that are not ours.
_ELSEWHERE = ("--config-", "-cd", "-cp", "hydra.searchpath")
_PLAIN = re.compile(r"[\w-]+")


def refuse_choices(words: Sequence[str]) -> str | None:
    """A sentence on a word that chooses what a group does not have; None where there is none, or Hydra knows better.

    >>> refuse_choices(["seed=1", "debug=slow"])
    'debug=slow is unknown: use one of default, overfit, profiler, or --config-dir with a file of your own.'
    >>> refuse_choices(["debug=overfit", "experiment=null", "scheme=lwpd,ddp"]) is None
    True
    """
    if any(word.lstrip("+~").startswith(_ELSEWHERE) for word in words):
        return None
    for word in words:
        group, _, given = word.lstrip("+").partition("=")
        there = _choices(group) if _PLAIN.fullmatch(group) else []
        for choice in given.split(",") if there else []:
            if _PLAIN.fullmatch(choice) and choice not in ("null", *there):
                return (
                    f"{group}={choice} is unknown: use one of {', '.join(there)}, or --config-dir with a file of your "
                    "own."
                )
    return None


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONFIG_PATH) / group).glob("*.yaml"))
