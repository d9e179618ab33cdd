"""What groups of runs are called: by what tells them apart, and only that."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence

from .run import Run

_SPELT_OUT = 3  # settings; of more, labels leave out what most groups have
_DIGITS = 8  # of a number that is written in full


def chosen_word(run: Run, key: str) -> str | None:
    """The word that chose a whole group of the configuration, such as straggler=one_slow."""
    choices = run.config.get("choices")
    return choices.get(key) if isinstance(choices, dict) else None


def labels(members: Mapping[tuple[str, ...], Run], keys: Sequence[str]) -> dict[tuple[str, ...], str]:
    """One label for each group: the scheme by its word, other keys by their last part, objects by word or class."""
    said: dict[tuple[str, ...], list[str]] = {values: [] for values in members}
    usual = _usual(list(members), keys)
    for place, key in enumerate(keys):
        words = _words(members, key, place)
        for values, parts in said.items():
            # A scheme without a code has no k; saying so would only lengthen its name.
            if values[place] == usual.get(key) or (values[place] == "none" and key.startswith(("code.", "wait_for"))):
                continue
            parts.append(words[values[place]] if key == "scheme" else f"{_short_key(key, keys)}={words[values[place]]}")
    return {values: " ".join(parts) or "all runs" for values, parts in said.items()}


def unsaid(members: Mapping[tuple[str, ...], Run], keys: Sequence[str]) -> str | None:
    """What `labels` leaves out, as a sentence; None where labels say all."""
    usual = _usual(list(members), keys)
    said = [
        f"{_short_key(key, keys)}={_words(members, key, place)[usual[key]]}"
        for place, key in enumerate(keys)
        if key in usual
    ]
    return f"Where a group does not say otherwise: {', '.join(said)}." if said else None


def _words(members: Mapping[tuple[str, ...], Run], key: str, place: int) -> dict[str, str]:
    """A key's value -> how it is written: the word that chose it, or briefly, where no two then have the same."""
    words = {values[place]: chosen_word(run, key) or _brief(values[place]) for values, run in members.items()}
    return words if len(set(words.values())) == len(words) else {value: value for value in words}


def _brief(value: str) -> str:
    """An object by its class, a long number by four digits.

    >>> _brief("Injector(kills={2: 100})"), _brief("0.00017666386"), _brief("0.3"), _brief("12345678901")
    ('Injector', '0.0001767', '0.3', '12345678901')
    """
    if len(value) > _DIGITS and "." in value:
        with contextlib.suppress(ValueError):
            return f"{float(value):.4g}"
    return value.partition("(")[0]


def _usual(values: Sequence[tuple[str, ...]], keys: Sequence[str]) -> dict[str, str]:
    """Of many settings the value that most groups have, as long as some have it in common."""
    settings = [place for place, key in enumerate(keys) if key != "scheme"]
    if len(settings) <= _SPELT_OUT:
        return {}
    counted = {place: Counter(one[place] for one in values).most_common(1)[0] for place in settings}
    return {keys[place]: value for place, (value, count) in counted.items() if count > 1}


def _short_key(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    # A number alone is no name: slowdown.1.
    last = ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
    name = last if sum(other.endswith(f".{last}") or other == last for other in keys) == 1 else key
    return {"wait_for": "K", "world_size": "workers"}.get(name, name)
