"""Groups of runs that are compared with each other: by keys, or by all that they differ in but the seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import budgets
from .labels import labels
from .run import MISSING, Run
from .schemes import known

# What a summary says of the method, in the order in which a reader asks.
_METHOD = ("scheme", "world_size", "code.family", "code.n", "code.k", "code.t", "wait_for")
# Parts of a configuration that change no result (what a run is called among them), or that the summary tells better.
_IDLE = {
    *("code", "seed", "paths", "logger", "sweep", "task_name", "tags"),
    *("ckpt_path", "resume", "restarts", "resumed_from", "choices", "optimized_metric"),
}
# Callbacks, by their names in the configuration, that only look on.
_LOOKING_ON = {"exchange", "checkpoint", "last", "recent", "target", "progress", "live"}
# Parts of a configuration that follow from the method, or from the code and the machine that ran it.
_OF_METHOD = {"scheme", "callbacks", "git_revision", "versions"}
_STRATEGY = "scheme.strategy"
_TARGET = ("target.metric", "target.value")


@dataclass(frozen=True)
class Group:
    """Runs with the same value of every key.

    Attributes:
        label: the values, as short as they still tell groups apart.
        values: key -> value as text.
        runs: its runs, ordered by seed.
        pooled: keys in which its runs differ although nobody asked for that.
    """

    label: str
    values: dict[str, str]
    runs: list[Run]
    pooled: list[str]

    @property
    def scheme(self) -> str:
        """Its scheme, which fixes its colour; "" where it holds several."""
        schemes = {run.scheme for run in self.runs}
        return schemes.pop() if len(schemes) == 1 else ""

    @property
    def metric(self) -> str:
        """The target metric of its runs."""
        return self.runs[0].metric


def group(runs: Sequence[Run], keys: Sequence[str] | None = None) -> list[Group]:
    """Partition `runs` by `keys`, or by every setting in which they differ but the seed.

    Runs with other targets never share a group.

    Raises:
        ValueError: no run has a value for one of the keys.
    """
    differing = [*_differing_of_method(runs), *_differing([_normalised(run) for run in runs])]
    if keys is None:
        split = _splitting(runs, [*differing, *_TARGET]) or ["scheme"]
        chosen = [*split, *(key for key in _beside_the_method(runs, differing) if key not in split)]
    else:
        for key in keys:
            if all(run.get(key) in (None, MISSING) for run in runs):
                known = ", ".join(dict.fromkeys([*_METHOD, *differing, *runs[0].config]))
                raise ValueError(
                    f"--group-by {key} has no value in any run's summary or configuration: use one of {known}."
                )
        chosen = [*keys, *(key for key in _splitting(runs, _TARGET) if key not in keys)]
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts.setdefault(tuple(as_text(value_of(run, key)) for key in chosen), []).append(run)
    shown = labels({values: members[0] for values, members in parts.items()}, chosen)
    groups = []
    for values in sorted(parts, key=_natural):
        members = sorted(parts[values], key=lambda run: _natural((as_text(run.get("seed")),)))
        pooled = _splitting(members, [key for key in differing if key not in chosen])
        groups.append(Group(shown[values], dict(zip(chosen, values, strict=True)), members, pooled))
    return groups


def value_of(run: Run, key: str) -> Any:
    """A setting without what belongs to the one run: its seed and its directories."""
    value = run.get(key)
    return _without_the_run(value, run) if isinstance(value, dict | list) else value


def _splitting(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Keys that tell more runs apart than those before them: the others would only repeat them."""
    parts: list[tuple[str, ...]] = [() for _ in runs]
    chosen: list[str] = []
    for key in keys:
        finer = [(*part, as_text(value_of(run, key))) for part, run in zip(parts, runs, strict=True)]
        if len(set(finer)) > len(set(parts)):
            parts, chosen = finer, [*chosen, key]
    return chosen


def _beside_the_method(runs: Sequence[Run], differing: Sequence[str]) -> list[str]:
    """Settings that differ, also where the method tells the same runs apart: a label has to show them."""
    beside = [
        key for key in differing if key.partition(".")[0] not in _OF_METHOD and key not in (*_METHOD, "trainer.devices")
    ]
    return list(dict.fromkeys([*_splitting(runs, beside), *(key for key in beside if key in budgets.LIMITS)]))


def _differing_of_method(runs: Sequence[Run]) -> list[str]:
    return [key for key in _METHOD if len({as_text(run.get(key)) for run in runs}) > 1]


def _differing(nodes: Sequence[Any], path: str = "") -> list[str]:
    """Dotted paths in which configurations differ, as deep as they are of one kind.

    >>> _differing([{"model": {"_target_": "mlp", "hidden": 8}}, {"model": {"_target_": "mlp", "hidden": 16}}])
    ['model.hidden']
    >>> _differing([{"straggler": None}, {"straggler": {"_target_": "one_slow"}}])
    ['straggler']
    """
    if all(node == nodes[0] for node in nodes[1:]):
        return []
    if not all(isinstance(node, dict) for node in nodes):
        return [path]
    # All schemes' functions take LWPDStrategy's arguments.
    if path != _STRATEGY and len({node.get("_target_") for node in nodes}) > 1:
        return [path]
    names = dict.fromkeys(name for node in nodes for name in node)
    return [
        below
        for name in names
        for below in _differing([node.get(name, MISSING) for node in nodes], f"{path}.{name}" if path else str(name))
    ]


def _normalised(run: Run) -> Any:
    settings = {name: node for name, node in run.config.items() if name not in _IDLE}
    if isinstance(callbacks := settings.get("callbacks"), dict):
        settings["callbacks"] = {name: node for name, node in callbacks.items() if name not in _LOOKING_ON}
    if isinstance(scheme := settings.get("scheme"), dict):
        settings["scheme"] = {name: node for name, node in scheme.items() if name != "look"}
    return _without_the_run(settings, run)


def _without_the_run(node: Any, run: Run) -> Any:
    """What would be the same had the run another seed and other directories."""
    paths = run.config.get("paths")
    directories = [path for path in paths.values() if isinstance(path, str)] if isinstance(paths, dict) else []
    if isinstance(node, dict):
        kept = ((name, below) for name, below in node.items() if not (name == "seed" and below == run.get("seed")))
        return {name: _without_the_run(below, run) for name, below in kept}
    if isinstance(node, list):
        return [_without_the_run(below, run) for below in node]
    if isinstance(node, str):
        # The longest first: a run's directory lies in the root of all.
        within = (path for path in sorted(directories, key=len, reverse=True) if f"{node}/".startswith(f"{path}/"))
        return node.removeprefix(next(within, ""))
    return node


def as_text(value: Any) -> str:
    """A value as users write it; of an object the class and its settings.

    >>> as_text({"_target_": "lwpd.StragglerInjector", "slowdown": {1: 5.0}}), as_text(None), as_text([True])
    ('StragglerInjector(slowdown={1: 5.0})', 'none', '[true]')
    """
    if value is None or value == {}:
        return "none"
    if isinstance(value, dict):
        settings = {name: below for name, below in value.items() if name not in ("_target_", "_partial_")}
        if "_target_" not in value:
            return "{" + ", ".join(f"{name}: {as_text(below)}" for name, below in settings.items()) + "}"
        inner = ", ".join(f"{name}={as_text(below)}" for name, below in settings.items())
        return f"{str(value['_target_']).rpartition('.')[2]}({inner})"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_text, value)) + "]"
    return value if isinstance(value, str) else repr(value) if value is MISSING else json.dumps(value, default=repr)


def _natural(values: Sequence[str]) -> list[tuple[float, str]]:
    """Key that sorts schemes in their order and numbers by size."""
    return [_place(value) for value in values]


def _place(value: str) -> tuple[float, str]:
    if value in known():
        return known()[value].place, ""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
