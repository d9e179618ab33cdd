"""The jobs of a sweep: which there are, what they have in common, and what has become of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from .job_label import job_label
from .processes import read
from .summary import FAILURE, SUMMARY, without_sweep


def resuming(words: Sequence[str]) -> list[str]:
    """Words of a sweep that go on with it.

    >>> resuming(["-m", "seed=8,9"])
    ['-m', 'seed=8,9', 'sweep.resume=true']
    """
    return [*(word for word in words if not word.startswith("sweep.resume=")), "sweep.resume=true"]


def state(directory: Path, all_of_them: Sequence[list[str]] | None, lost: Sequence[int]) -> str:
    """How many jobs had finished, which were stopped and what is kept of them, and which were not begun.

    Args:
        directory: the sweep's.
        all_of_them: what `jobs` says.
        lost: numbers of those whose end nobody has seen.
    """
    folders = [path.parents[1] for path in directory.rglob(".hydra/overrides.yaml")]
    ended = {name: [found for folder in folders if (found := read(folder / name))] for name in (SUMMARY, FAILURE)}
    stopped = sorted((one for one in ended[FAILURE] if "stopped" in one), key=lambda one: one.get("number", -1))
    failed = len(ended[FAILURE]) - len(stopped)
    of = "" if all_of_them is None else f" of {len(all_of_them)}"
    parts = [f"{len(ended[SUMMARY])}{of} jobs had finished" + (f", {failed} failed" if failed else "")]
    if stopped:
        told = [f"{job_label(one.get('number', -1), one['overrides'])} {one['stopped']}" for one in stopped]
        parts.append(f"stopped: {'; '.join(told)}")
    if lost:
        parts.append(f"left no word: {_numbers(lost)}")
    begun = [one.get("overrides") for one in [*ended[SUMMARY], *ended[FAILURE]]]
    left = [number for number, words in enumerate(all_of_them or []) if words not in begun and number not in lost]
    if left:
        parts.append(f"not begun: {_numbers(left)}")
    elif all_of_them is None:
        parts.append("the sweeper had not come to its end")
    return "; ".join(parts)


def _numbers(numbers: Sequence[int]) -> str:
    """Numbers of jobs, in order.

    >>> _numbers([4]), _numbers([2, 3, 4, 7])
    ('job 4', 'jobs 2-4, 7')
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return f"job{'s' * (len(numbers) > 1)} " + ", ".join("-".join(map(str, span)) for span in spans)


def jobs(config: DictConfig) -> list[list[str]] | None:
    """Words of all jobs by their numbers; None where the sweeper chooses them one after the other."""
    if OmegaConf.select(config, "hydra.sweeper._target_") != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
        return None
    params = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    parsed = _parser().parse_overrides([*params, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [without_sweep(job) for job in jobs]


def common(config: DictConfig) -> list[str]:
    """What is typed of one value, as it is typed, and as jobs have it."""
    fixed = [one for one in _parser().parse_overrides(list(config.hydra.overrides.task)) if not one.is_sweep_override()]
    as_jobs_have_it = [f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in fixed]
    return [*as_jobs_have_it, *(one.input_line or "" for one in fixed)]


def _parser() -> OverridesParser:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
