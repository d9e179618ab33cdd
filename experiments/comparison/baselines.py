"""Which group each group is measured against: one of the same settings and of the same budget, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import budgets
from .groups import Group, as_text, value_of
from .labels import chosen_word
from .run import MISSING

# Chosen in this order where nobody names a baseline.
_PLAIN = ("ddp", "sync", "k_sync", "k_async")


def baselines(groups: Sequence[Group], wanted: str | None) -> tuple[dict[int, Group], list[str]]:
    """For the index of each group the group that it is measured against, and why a budget leaves others without one.

    Args:
        groups: all groups.
        wanted: `key=value[,key=value]`; None: ddp, sync, k_sync or k_async, the first that is there.

    Where several groups fit (the baseline's scheme under several stragglers, say), a group is measured against the one
    that agrees with it in every key in which these differ.

    Raises:
        ValueError: `wanted` is not of that form, or fits no group.
    """
    conditions = _conditions(wanted) if wanted else None
    if conditions is None:
        found: list[Group] = next(
            (fitting for scheme in _PLAIN if (fitting := [g for g in groups if g.scheme == scheme])), []
        )
    else:
        found = [candidate for candidate in groups if _fits(candidate, conditions)]
        if not found:
            raise ValueError(f"--baseline {wanted} fits no group: {_why_none(groups, conditions)}.")
    told_apart = [key for key in found[0].values if len({one.values[key] for one in found}) > 1] if found else []
    matched: dict[int, Group] = {}
    reasons: dict[str, list[str]] = {}
    for index, one in enumerate(groups):
        agreeing = [base for base in found if all(base.values[key] == one.values[key] for key in told_apart)]
        if len(agreeing) == 1 and (agreeing[0] is one or not budgets.differences(one.runs, agreeing[0].runs)):
            matched[index] = agreeing[0]
            continue
        alike_but_for_budgets = [
            base
            for base in found
            if all(base.values[key] == one.values[key] for key in told_apart if key not in budgets.LIMITS)
        ]
        others = [
            f"{base.label} had another budget ({', '.join(differences)})"
            for base in alike_but_for_budgets
            if (differences := budgets.differences(one.runs, base.runs))
        ]
        if found:
            reason = "; ".join(others) or f"no run of {found[0].scheme or found[0].label} has its other settings"
            reasons.setdefault(reason, []).append(one.label)
    return matched, [f"No ratio for {'; '.join(labels)}: {reason}." for reason, labels in reasons.items()]


def _conditions(wanted: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in wanted.split(",")]
    if not all(key and equals and value for key, equals, value in pairs):
        raise ValueError(f"--baseline {wanted} names no group: use key=value, such as scheme=ddp.")
    return {key: value for key, _, value in pairs}


def _why_none(groups: Sequence[Group], conditions: Mapping[str, str]) -> str:
    has = {key: _values(groups, key) for key in conditions}
    if all(value in has[key] for key, value in conditions.items()):
        return f"none holds such runs alone, so group by {', '.join(conditions)} too"
    return "there is " + "; ".join(f"{key}={', '.join(values) or '(in no run)'}" for key, values in has.items())


def _fits(candidate: Group, conditions: Mapping[str, str]) -> bool:
    return all(
        value in (as_text(value_of(run, key)), chosen_word(run, key))
        for run in candidate.runs
        for key, value in conditions.items()
    )


def _values(groups: Sequence[Group], key: str) -> list[str]:
    values = {
        chosen_word(run, key) or as_text(value)
        for one in groups
        for run in one.runs
        if (value := value_of(run, key)) is not MISSING
    }
    return sorted(values)
