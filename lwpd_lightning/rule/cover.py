"""Between whom links broke, and the fewest workers without whom all that are left stand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set

# The fewest workers that have a share in all broken links are found exactly up to this many.
_MOST_EXACT = 8


def connected(pairs: Iterable[frozenset[int]]) -> list[set[frozenset[int]]]:
    """Pairs that hang together by workers that they share.

    >>> [len(group) for group in connected([frozenset((1, 2)), frozenset((3, 4)), frozenset((2, 5))])]
    [1, 2]
    """
    groups: list[set[frozenset[int]]] = []
    for pair in pairs:
        touching = [group for group in groups if any(pair & other for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append({pair}.union(*touching))
    return groups


def smallest_cover(pairs: Set[frozenset[int]], doubts: Mapping[int, tuple[int, int]] | None = None) -> set[int]:
    """The fewest workers of whom every pair has at least one; of equals, those with more doubts or higher numbers.

    A minimum vertex cover, exact up to 8 workers; where more are needed, who is in most pairs is taken first.

    >>> smallest_cover({frozenset((0, 1)), frozenset((1, 2)), frozenset((1, 3))})
    {1}
    >>> smallest_cover({frozenset((2, 5))})
    {5}
    """
    if doubts is not None:
        known = sorted(doubts, key=lambda worker: (doubts[worker], worker))
        places = {worker: place for place, worker in enumerate(known)}
        placed = {frozenset(places[worker] for worker in pair) for pair in pairs}
        return {known[place] for place in smallest_cover(placed)}
    for size in range(_MOST_EXACT + 1):
        if (cover := _cover_of(pairs, size)) is not None:
            return cover
    others = defaultdict[int, set[int]](set)
    for one, other in pairs:
        others[one].add(other)
        others[other].add(one)
    cover = set[int]()
    while any(others.values()):
        worker = max(others, key=lambda worker: (len(others[worker]), worker))
        cover.add(worker)
        for other in others.pop(worker):
            others[other].discard(worker)
    return cover


def _cover_of(pairs: Set[frozenset[int]], size: int) -> set[int] | None:
    """A cover of at most ``size`` workers: it holds the one in most pairs, or all that this one is paired with."""
    if not pairs:
        return set()
    if not size:
        return None
    worker = _busiest(pairs)
    others = {other for pair in pairs if worker in pair for other in pair - {worker}}
    if len(pairs) > size * len(others):  # nobody is in more pairs than it
        return None
    for chosen in ({worker}, others):
        if len(chosen) <= size:
            rest = _cover_of({pair for pair in pairs if not pair & chosen}, size - len(chosen))
            if rest is not None:
                return chosen | rest
    return None


def _busiest(pairs: Set[frozenset[int]]) -> int:
    counts = Counter(worker for pair in pairs for worker in pair)
    return max(counts, key=lambda worker: (counts[worker], worker))
