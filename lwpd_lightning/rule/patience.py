"""How long an update may be held up before the workers that hold it up are given up."""

from __future__ import annotations

from collections import deque

# An update that takes so many times as long as any of the last ones is no slow one.
_TIMES, _REMEMBERED = 20, 256
# Before so many updates nobody can tell what is slow: data are read and kernels compiled for the first time.
_LEAST_UPDATES = 20
_LEAST_S = 60.0


class Patience:
    """How long rank 0 waits, without anything new, for one update.

    Args:
        given_s: seconds that the user has set; None: 20 times the longest wait of the last 256 updates, and a minute at
            least, known after 20 updates.
        longest_s: never longer than this.
    """

    def __init__(self, given_s: float | None, longest_s: float) -> None:
        self._given_s, self._longest_s = given_s, longest_s
        self._waits = deque[float](maxlen=_REMEMBERED)
        self._waiting_for: object = None
        self._since = 0.0

    def observe(self, seconds: float) -> None:
        """An update was waited for so long."""
        self._waits.append(seconds)

    @property
    def seconds(self) -> float:
        """The bound as it is now."""
        if self._given_s is not None:
            return min(self._given_s, self._longest_s)
        if len(self._waits) < _LEAST_UPDATES:
            return self._longest_s
        return min(self._longest_s, max(_LEAST_S, _TIMES * max(self._waits)))

    def over(self, waiting_for: object, now: float) -> bool:
        """Whether the same has been waited for longer than that.

        Args:
            waiting_for: what is waited for at ``now``; something else than the last time is news.
            now: the time, in seconds.
        """
        if waiting_for != self._waiting_for:
            self._waiting_for, self._since = waiting_for, now
        return now - self._since > self.seconds
