"""How long workers take from a version's publication to their codeword of it, as far as rank 0 can tell."""

from __future__ import annotations

from collections.abc import Collection


class Delays:
    """A worker says how long it computed. That its link is slow shows only in when its word comes.

    Of a worker that had nothing else to do when a version was published, that is the time in between; of one that was
    still busy it would hold what came before.
    """

    def __init__(self) -> None:
        self._asked: dict[int, tuple[int, float]] = {}  # worker -> version that it was free for, and when

    def published(self, version: int, free: Collection[int], now: float) -> None:
        """A version was published at ``now`` (seconds); ``free``: workers that had no codeword to wait with."""
        for worker in free:
            self._asked.setdefault(worker, (version, now))

    def of(self, worker: int, version: int, computed_s: float, now: float) -> float:
        """Seconds that a worker took for a codeword of ``version``.

        Args:
            worker: whose word has come.
            version: what it is of.
            computed_s: how long it computed, as it says.
            now: when its word came (seconds), or when it had not come yet.
        """
        asked = self._asked.pop(worker, None)
        if asked is None or asked[0] != version:
            return computed_s
        return max(computed_s, now - asked[1])

    def forget(self, worker: int) -> None:
        """A worker died."""
        self._asked.pop(worker, None)
