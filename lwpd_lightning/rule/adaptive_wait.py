"""K that follows the weather: how many codewords each update waits for, chosen from measured delays and decode noise.

No sockets, no clock, no model: whoever drives it says what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.decoders import Decoder
from lwpd_lightning.coding.noise import decoded_noise

# Delays that each worker is known by: its last ones. They and _MEMORY decide how soon new weather is believed.
_WINDOW = 32
# Rehearsed updates that the estimates look back on, and the least that they need before K moves.
_MEMORY = 24
_SETTLE = 16
# Numbers that one step of the rehearsals may work on: together about 50 us. More replicas are steadier estimates.
_STEP_BUDGET = 2048
_REPLICAS = 16
# K that are rehearsed: all where they are no more, else so many from the least to the most. Among many workers one more
# or less changes little, and a rehearsal of every K grows as their square.
_CHOICES = 32
# K moves only for a gain of more than this: estimates are noisy, and a K that wanders upsets measured inclusion rates.
_MARGIN = 0.05
# K that are as good as this to the best are level with it, and of these the largest is taken: the freshest gradients.
_TIE = 0.02
# Delays beyond these are not told apart, which keeps sums and quotients finite.
_SHORTEST_S, _LONGEST_S = 1e-9, 1e6


class AdaptiveWait:
    """Chooses for every update the K of most progress per second, ``E[1 / (1 + v + s)] / E[T]``.

    - v, `decoded_noise`: relative variance of the gradient decoded from as many codewords as count.
    - s: their mean staleness in versions. SGD on gradients that are s versions old takes steps ``1 / (1 + s)`` as long
      (Stich & Karimireddy, JMLR 2020; Koloskova et al., NeurIPS 2022: the average delay), as noise v makes them
      ``1 / (1 + v)``.
    - T: seconds from an update's opening to the next one's: until its last codeword is ready, and what then follows
      whatever K is, adding up and stepping.

    That is the error-runtime trade-off of Dutta, Wang & Joshi, "Slow and Stale Gradients Can Win the Race" (IEEE JSAIT,
    2021), and K adapts as in their AdaSync, but to the weather and not to the progress of training: they raise K as the
    loss falls, here the batch stays at its gradient noise scale.

    How long workers take does not depend on K, so what any K would bring can be told from the delays measured under
    another: alongside the run each K is rehearsed in exchanges of imagined workers, whose delays are drawn from the
    last 32 of the real ones and who are counted by `ArrivalRule`'s rule: busy workers stay busy from update to update,
    and all that is there at the close counts. Each call of `choose` rehearses one more update of each K, all under the
    same draws. Long delays thus show K = 3 that K = 8 would be slow, and short ones that it no longer is, untried.

    Until workers are known, K is half of them: in calm weather that loses little, and in bad weather waiting for all
    would cost more than all that is learnt from it. A worker's first delay is not believed: it holds its warm-up.

    Args:
        code: the code.
        least: bound of K, at least 1.
        most: bound of K, at most n.
        own: the worker whose codeword every update waits for, or None.
        feedback: workers send later what a codeword left out. One that came too late to count is then not lost either:
            it is rehearsed as part of the worker's next one, with its staleness.
        decoder: how codewords become a gradient.
        max_staleness: older codewords do not count, and their worker starts anew at once; 0: none that is late
            (stale="drop"); None: no bound.

    Raises:
        ValueError: where bounds are not ``1 <= least <= most <= n``, or ``own`` is no worker.
    """

    def __init__(
        self,
        code: Code,
        least: int,
        most: int,
        *,
        own: int | None,
        feedback: bool,
        decoder: Decoder = "projective",
        max_staleness: int | None = None,
    ) -> None:
        if not 1 <= least <= most <= code.n:
            raise ValueError(
                f"wait_for_bounds=({least}, {most}): use 1 <= least <= most <= {code.n}, the code's workers."
            )
        if own is not None and not 0 <= own < code.n:
            raise ValueError(f"own={own} with n={code.n} workers: use None or a worker in 0..{code.n - 1}.")
        if max_staleness is not None and max_staleness < 0:
            raise ValueError(f"max_staleness={max_staleness}: use a number of versions >= 0, or None for no bound.")
        self._code, self._least, self._most, self._own = code, least, most, own
        self._feedback, self._decoder, self._limit = feedback, decoder, max_staleness
        self._rows = np.arange(code.n)
        self._random = np.random.default_rng(0)
        self._delays = np.full((code.n, _WINDOW), math.inf)
        self._observed = [-1] * code.n  # the first is left out
        self._known = np.ones(code.n)  # valid entries of a row of _delays; 1 where there is none, which is inf
        self._wait_for = min(max((code.n + 1) // 2, least), most)
        self._live: frozenset[int] = frozenset()
        self._rehearsing: frozenset[int] = frozenset()  # those that live and are known
        self._choices = np.arange(0)
        self._gain = self._seconds = np.zeros(0)
        self._steps = 0
        self._between: float | None = None  # seconds from the last codeword to the next opening

    def observe(self, worker: int, seconds: float) -> None:
        """Note a worker's delay, whether or not its codeword counted.

        Args:
            worker: whose.
            seconds: from sending it a version (the version's publication, or later if the worker was late itself) to
                its codeword of that version being ready.

        Raises:
            ValueError: for an unknown worker, and for seconds that are negative or no finite number.
        """
        if not 0 <= worker < self._code.n:
            raise ValueError(f"worker {worker} with n={self._code.n}: use 0..{self._code.n - 1}.")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds={seconds} of worker {worker} is no delay: use a finite number >= 0.")
        seen = self._observed[worker]
        self._observed[worker] = seen + 1
        if seen < 0:
            return
        self._delays[worker, seen % _WINDOW] = min(seconds, _LONGEST_S)
        self._known[worker] = min(seen + 1, _WINDOW)

    def observe_rest(self, seconds: float) -> None:
        """Note how long it took from an update's last codeword to the opening of the next update."""
        if self._between is None:
            self._between = seconds
        self._between += (seconds - self._between) / _MEMORY

    def choose(self, live: Collection[int]) -> int:
        """K of the update that opens now, within the bounds but for no more than live.

        Args:
            live: the live workers.

        Raises:
            ValueError: where no worker lives, or an unknown one.
        """
        if not live:
            raise ValueError("no workers live: there is nobody to wait for.")
        self._meet(frozenset(live))
        if self._rehearsing:
            self._rehearse()
            while self._steps < _SETTLE:  # those that are to rehearse have just changed
                self._rehearse()
            rates = self.rates
            good = max(rates.values())
            if good > (1 + _MARGIN) * rates.get(self._wait_for, 0.0):
                self._wait_for = max(K for K, rate in rates.items() if rate * (1 + _TIE) >= good)
        return self._wait_for

    @property
    def rates(self) -> dict[int, float]:
        """Estimated progress per second of each K that may be chosen; 1 is that of exact gradients without noise."""
        rates = self._gain / np.maximum(self._seconds + (self._between or 0.0), _SHORTEST_S)
        return dict(zip(self._choices.tolist(), rates.tolist(), strict=True))

    def _meet(self, live: frozenset[int]) -> None:
        """Begin the rehearsals anew where other workers live or are known than before."""
        n = self._code.n
        if live != self._live:
            noise = decoded_noise(self._code, live, own=self._own, decoder=self._decoder, feedback=self._feedback)
            self._noise, self._live, self._rehearsing = np.array(noise), live, frozenset()
            self._wait_for = min(max(self._wait_for, self._least), self._most, len(live))
        known = frozenset(worker for worker in live if self._observed[worker] > 0)
        top = min(self._most, len(known))
        bottom = min(self._least, len(live))
        if self._own in live - known or top < bottom or known == self._rehearsing:
            return
        self._rehearsing = known
        self._choices = np.unique(np.linspace(bottom, top, min(_CHOICES, top + 1 - bottom)).round().astype(np.intp))
        replicas = max(1, min(_REPLICAS, _STEP_BUDGET // (len(self._choices) * n)))
        shape = (replicas, len(self._choices), n)
        self._left = np.full(shape, math.inf)  # seconds that a busy worker still needs at the opening; 0: it starts
        self._left[..., sorted(known)] = 0.0
        self._age = np.zeros(shape)  # versions since that which a busy worker computes
        self._owed = np.zeros(shape)  # late codewords that the next to count brings, and the sum of their ages
        self._owed_age = np.zeros(shape)
        self._gain, self._seconds = np.zeros(len(self._choices)), np.zeros(len(self._choices))
        self._kth = np.arange(len(self._choices))
        self._steps = 0

    def _rehearse(self) -> None:
        """One more update of every K."""
        left, age = self._left, self._age
        draws = (self._random.random((len(left), self._code.n)) * self._known).astype(np.intp)
        delays = self._delays[self._rows, draws][:, None, :]
        starts = left == 0
        if self._limit is not None:
            late = age > self._limit
            starts |= late
        ready = left + np.where(starts, delays, 0.0)

        closes = np.sort(ready, axis=-1)[:, self._kth, self._choices - 1]
        if self._own in self._rehearsing:
            closes = np.maximum(closes, ready[..., self._own])
        end = closes[..., None]
        counts = ready <= end

        if self._limit is not None:
            restarts = late & (left <= end)
            ready = np.where(late & ~restarts, left, ready)
            if self._feedback:
                self._owed += restarts
                self._owed_age += age * restarts
            age = np.where(restarts, 0.0, age)
        # One that gets ready before the next opening is there when it comes: not free, which is what 0 means.
        self._left = np.where(counts, 0.0, np.maximum(ready - end - (self._between or 0.0), _SHORTEST_S))
        self._age = np.where(counts, 0.0, age + 1)
        if self._limit is not None and self._feedback:
            delivered = (counts * (1 + self._owed)).sum(axis=-1)
            stale = (counts * (age + self._owed_age)).sum(axis=-1) / delivered
            self._owed *= ~counts
            self._owed_age = (self._owed_age + self._owed) * ~counts
        else:
            delivered = counts.sum(axis=-1)
            stale = (counts * age).sum(axis=-1) / delivered
        noise = self._noise[np.minimum(delivered, self._code.n).astype(np.intp)]

        self._steps += 1
        weight = max(1 / self._steps, 1 / _MEMORY)
        self._gain += weight * ((1 / (1 + noise + stale)).sum(axis=0) / len(left) - self._gain)
        self._seconds += weight * (closes.sum(axis=0) / len(left) - self._seconds)
