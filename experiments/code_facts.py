"""What there is to say of a code before anyone trains with it: who computes what, and what arrivals are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from lwpd_lightning import Code

# Arrival sets that are tried one by one; beyond that a seeded sample of as many: thorough, or before and after a run.
MAX_SETS = 1000
QUICK_SETS = 300


class Arrivals(NamedTuple):
    """What the first `count` codewords are worth.

    Attributes:
        count: K, how many arrived.
        share: of the sets of K workers, those from which a solve gives the exact gradient.
        tried: number of sets that were tried.
        sets: number of sets; where fewer were tried, `share` is an estimate from a random sample.
        error: expected ``|estimate - gradient|^2 / |gradient|^2`` of the projective decoder; None where the code is no
            tight frame, which that decoder needs.
    """

    count: int
    share: float
    tried: int
    sets: int
    error: float | None

    @property
    def all_tried(self) -> bool:
        """Whether `share` is exact."""
        return self.tried == self.sets


class Group(NamedTuple):
    """Workers with the same tasks, and for each of their data parts the blocks that they mix."""

    workers: list[int]
    blocks: dict[int, list[int]]


@lru_cache(maxsize=4)
def recovery(code: Code, max_sets: int = QUICK_SETS) -> tuple[Arrivals, ...]:
    """What K = 1..n arrivals are worth, in this order."""
    profile = code.recovery_profile(max_sets=max_sets)
    return tuple(
        Arrivals(count, share, min(sets := math.comb(code.n, count), max_sets), sets, projective_error(code, count))
        for count, share in profile.items()
    )


def projective_error(code: Code, count: int) -> float | None:
    """Expected ``|estimate - gradient|^2 / |gradient|^2`` of the projective decoder after K = `count` arrivals.

    The mean over all sets of K workers, the code's versions, and task gradients without a preferred direction. With
    unit-norm rows that are a tight frame it is ``(k/K) (1 + (K-1) (|C C^T|_F^2 - n) / (n (n-1))) - 1``, which for a
    fixed code is ``(n-K)(k-1) / (K(n-1))``. None where the code is no tight frame.

    >>> from lwpd_lightning import lwpd_code
    >>> round(projective_error(lwpd_code(8, 4, 2), 6), 3)
    0.143
    """
    if not code.is_tight:
        return None
    pairs = max(1, code.n * (code.n - 1))
    squares = [float((c.generator @ c.generator.T).square().sum()) for c in code.cycle]
    overlap = sum(squares) / len(squares) - code.n
    return max(0.0, code.k / count * (1 + (count - 1) * overlap / pairs) - 1)


def tolerance(code: Code, worth: Sequence[Arrivals]) -> str | None:
    """How many codewords the exact gradient needs, with "any" said only of what was tried one by one.

    None where even all codewords do not hold the exact gradient.

    >>> from lwpd_lightning import lwpd_code, uncoded
    >>> tolerance(lwpd_code(8, 4, 2), recovery(lwpd_code(8, 4, 2)))
    'any 5 of 8'
    >>> tolerance(uncoded(4), recovery(uncoded(4)))
    'all 4'
    """
    # More arrivals never span less: one set that fails proves that some smaller sets fail too, tried or not.
    failing = max((at.count for at in worth if at.share < 1), default=0)
    if failing == code.n:
        return None
    held = worth[failing:]
    proven = next(at.count for at in held if at.all_tried or at.count == code.recovery_threshold)
    exact = f"all {proven}" if proven == code.n else f"any {proven} of {code.n}"
    if held[0].count == proven:
        return exact
    return f"{exact}, and each of {held[0].tried} sampled sets of {held[0].count}"


def exactness(code: Code, worth: Sequence[Arrivals]) -> str:
    """From what arrivals the exact gradient can be solved for, in words.

    >>> from lwpd_lightning import lwpd_code
    >>> exactness(lwpd_code(8, 4, 2), recovery(lwpd_code(8, 4, 2)))
    'from any 5 of 8 codewords'
    """
    turns = len(code.cycle)
    if turns > 1:
        return f"in no update alone, which shows one direction of {turns}; a run of {turns} updates shows all"
    enough = tolerance(code, worth)
    return f"from {enough} codewords" if enough is not None else "not even from all codewords"


def layout(code: Code) -> list[Group]:
    """Who computes what: workers with the same tasks together, in the order of their first worker."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for worker in range(code.n):
        groups.setdefault(tuple((task.data_part, task.block) for task in code.tasks(worker)), []).append(worker)
    return [
        Group(workers, {part: [b for a, b in tasks if a == part] for part in dict(tasks)})
        for tasks, workers in groups.items()
    ]


def worker_loads(code: Code) -> list[float]:
    """For each worker, the share of the batch that it computes: its data parts of A."""
    return [len(code.parts(worker)) / code.data_parts for worker in range(code.n)]


def workers_of_a_task(code: Code) -> tuple[int, int]:
    """How many workers compute a task: the fewest and the most over all tasks."""
    counts = torch.count_nonzero(code.generator, dim=0)
    return int(counts.min()), int(counts.max())


def size(code: Code) -> str:
    """Data parts and blocks in words.

    >>> from lwpd_lightning import lwpd_code, uncoded
    >>> size(lwpd_code(8, 4, 2)), size(uncoded(8))
    ('2 data parts x 2 blocks', '8 data parts x 1 block')
    """
    parts, blocks = code.data_parts, code.blocks
    return f"{parts} data part{'s' * (parts > 1)} x {blocks} block{'s' * (blocks > 1)}"


def span(values: Sequence[int]) -> str:
    """Numbers in ascending order, runs of three or more shortened.

    >>> span([0, 1, 2, 3, 5, 8, 9])
    '0-3, 5, 8, 9'
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def tasks_text(group: Group, code: Code) -> str:
    """Data parts and blocks of a group in words; "all" where it has all blocks of a part.

    >>> from lwpd_lightning import lwpd_code
    >>> [tasks_text(group, lwpd_code(8, 4, 2)) for group in layout(lwpd_code(8, 4, 2))][1:3]
    ['part 1: all blocks', 'part 0: block 0; part 1: block 1']
    """

    def blocks(numbers: list[int]) -> str:
        if len(numbers) == code.blocks:
            return "all blocks" if code.blocks > 1 else "whole gradient"
        return f"block{'s' * (len(numbers) > 1)} {span(numbers)}"

    # Parts with the same blocks are named together: a gradient code's workers have many.
    together: dict[tuple[int, ...], list[int]] = {}
    for part, numbers in group.blocks.items():
        together.setdefault(tuple(numbers), []).append(part)
    return "; ".join(
        f"part{'s' * (len(parts) > 1)} {span(parts)}: {blocks(list(numbers))}" for numbers, parts in together.items()
    )
