"""The K-of-n rule: which codewords count in which update, how stale they may be, and with what weight.

Sockets and clocks stay outside: whoever drives the rule tells it what arrived and when, so the real coordinator and a
simulated clock run the same code.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.decoders import Decoder, least_squares_coefficients, live_coefficients
from lwpd_lightning.rule.adaptive_wait import AdaptiveWait

Stale = Literal["apply", "drop"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A worker that rarely counts is weighted up by the inverse of its measured inclusion rate, but never by more than this
# against an even worker: a codeword that comes once in fifty updates must not become a fifty-fold step.
_WEIGHT_CLIP = 4.0
# Updates that an inclusion rate is measured over, the newest counting most: long enough that chance moves a weight by a
# few percent only, short enough that a worker which has recovered is weighted as the others after some hundred updates.
_RATE_MEMORY = 128
# Updates' worth of belief in even inclusion before the measured rates take over.
_EVEN_PRIOR = 20
# Updates that the mean number of codewords computed for one is taken over.
_COMPUTED_MEMORY = 24


class Arrival(NamedTuple):
    """A codeword that counted: ``staleness`` in versions, ``delay_s`` after its update was opened (0 if before)."""

    worker: int
    staleness: int
    delay_s: float


@dataclass(frozen=True)
class Decoding:
    """How an update's gradient comes of its codewords: block b is ``sum_i coefficients[i][b] * codeword i``."""

    coefficients: dict[int, list[float]]


@dataclass
class ArrivalRule:
    """Decides, codeword by codeword, what counts; one instance lives as long as a fit.

    An update is open until ``wait_for`` codewords have arrived (all that live, when fewer do), among them ``own``'s
    own. What is there when the update closes counts, so it may be more than K.

    Weights: with all of n arriving, codeword i enters block b with the coefficient D[i, b] of the live rows' canonical
    dual, k/n * sum_a C[i, (a, b)] / A for a tight frame with nobody dead. When only some arrive, each is divided by its
    inclusion probability (Horvitz-Thompson), which keeps the decoded gradient unbiased: 1 for ``own``, m/(L-1) for
    each of the other L-1 live workers when m of them counted, tilted by their inclusion rates in the last updates where
    these are uneven. Where dropped codewords come back through error feedback, every computed one counts once, sooner
    or later: then each is divided by the mean number of codewords that are computed in the time of an update.

    An update runs `open`, `counts` for each arrival, `decide` when it is `complete`, `close` when its gradient is
    there. Whoever dies before the close takes its codeword along, and the update goes on without it.

    Args:
        code: the code.
        wait_for: K, in 1..n; with ``adaptive`` that of the open update.
        decoder: "projective" adds codewords up without a solve; "least_squares" and "exact" solve for the arrival set.
            That the set can be solved exactly is up to who drives the rule: while recovery_threshold workers live and
            wait_for is no less, it can.
        stale: whether a codeword of an older version counts ("apply") or not ("drop").
        max_staleness: with "apply", older codewords than this many versions do not count; None: no bound.
        own: the worker whose own codeword every update waits for (the coordinator's), or None.
        feedback: workers send later what a codeword left out, so that nothing is made up for it here (a sketch).
        adaptive: chooses K for each update; None: it stays.
    """

    code: Code
    wait_for: int
    decoder: Decoder = "projective"
    stale: Stale = "apply"
    max_staleness: int | None = None
    own: int | None = None
    feedback: bool = False
    adaptive: AdaptiveWait | None = None

    live: set[int] = field(init=False)  # changed by `lose` and `join` alone
    version: int = field(init=False, default=-1)
    oldest: int = field(init=False, default=0)  # of whose codewords the open update may count
    updates: int = field(init=False, default=0)
    inclusions: Counter[int] = field(init=False, default_factory=Counter)
    _counted: dict[int, Arrival] = field(init=False, default_factory=dict)
    _rates: Floats | None = field(init=False, default=None)  # of all n workers
    _opened_at: float = field(init=False, default=0.0)
    _decided_at: float | None = field(init=False, default=None)
    _decided: bool = field(init=False, default=False)
    _computed: int = field(init=False, default=0)  # codewords of others since the last decision
    _computed_mean: float | None = field(init=False, default=None)
    _oldest_valid: int = field(init=False, default=0)
    _expected: set[int] = field(init=False, default_factory=set)  # who lived at the opening or has come since
    _awaited: set[int] = field(init=False, default_factory=set)  # of whom a codeword would count
    _others: Integers = field(init=False)  # live workers but `own`, ascending
    _refused: set[int] = field(init=False, default_factory=set)  # whose codeword of the open version is of no use
    _duals: dict[Code, Floats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.live = set(range(self.code.n))
        self._find_others()

    @property
    def arrivals(self) -> list[Arrival]:
        """The codewords that count in the open update, in the order in which they came."""
        return list(self._counted.values())

    @property
    def counted(self) -> set[int]:
        """Workers whose codewords count in the open update."""
        return set(self._counted)

    @property
    def needed(self) -> int:
        """How many codewords the open update waits for."""
        return min(self.wait_for, self._to_come)

    @property
    def _to_come(self) -> int:
        """How many codewords can arrive in the open update at all."""
        return len(self.live) - len(self._refused & self.live)

    @property
    def complete(self) -> bool:
        """Whether the open update may close."""
        own = self.own is None or self.own in self._counted or self.own in self._refused
        return own and len(self._counted) >= self.needed

    @property
    def awaited(self) -> list[int]:
        """Live workers that have not yet counted in the open update."""
        return sorted(self._awaited)

    def inclusion_rate(self, worker: int) -> float:
        """The share of all updates so far in which the worker counted."""
        return self.inclusions[worker] / self.updates if self.updates else 0.0

    def lose(self, worker: int) -> None:
        """A worker died: an erasure from now on, also of the codeword that it had ready for the open update."""
        self.live.discard(worker)
        self._awaited.discard(worker)
        self._counted.pop(worker, None)
        self._find_others()

    def refuse(self, worker: int) -> None:
        """The worker's codeword of the open version is of no use: this update goes on as if the worker were lost."""
        self._counted.pop(worker, None)
        self._awaited.discard(worker)
        self._expected.discard(worker)
        self._refused.add(worker)
        self._duals = {}

    def spares(self, workers: set[int]) -> bool:
        """Whether as many others as the open update waits for can still count in it."""
        return len(self.live - self._refused - workers) >= self.wait_for

    def join(self, worker: int) -> None:
        """A worker that was lost is back, and counts, also in the open update, as if it always had like the others."""
        if self._rates is not None and len(self._others):
            self._rates[worker] = self._rates[self._others].mean()
        self.live.add(worker)
        self._expected.add(worker)
        if worker not in self._counted:
            self._awaited.add(worker)
        self._duals = {}
        self._find_others()

    def open(self, version: int, now: float, *, void_older: bool = False) -> None:
        """Begin the update that starts from ``version``; ``void_older``: nothing computed before it may count."""
        self.version, self._opened_at, self._counted, self._decided = version, now, {}, False
        self._refused.clear()
        if self.adaptive is not None:
            if self._decided_at is not None:
                self.adaptive.observe_rest(now - self._decided_at)
            self.wait_for = self.adaptive.choose(self.live)
        if void_older:
            self._oldest_valid = version
        limit = 0 if self.stale == "drop" else self.max_staleness
        self.oldest = self._oldest_valid if limit is None else max(self._oldest_valid, version - limit)
        if self.live != self._expected:
            self._expected = set(self.live)
            self._duals = {}
        self._awaited = set(self.live)

    def observe(self, worker: int, seconds: float) -> None:
        """Note that a worker has computed a codeword, whether or not it counts, and how long that took."""
        self._computed += worker != self.own
        if self.adaptive is not None:
            self.adaptive.observe(worker, seconds)

    def counts(self, worker: int, version: int, now: float) -> bool:
        """Whether a codeword of ``version`` that arrived at ``now`` counts in the open update, and note it if so."""
        if worker not in self._awaited or not self.oldest <= version <= self.version:
            return False
        self._awaited.remove(worker)
        delay_s = now - self._opened_at
        self._counted[worker] = Arrival(worker, self.version - version, delay_s if delay_s > 0 else 0.0)
        return True

    def decide(self, now: float) -> Decoding:
        """With what each codeword that has arrived enters the gradient of the open update."""
        self._decided_at = now
        if not self._decided:
            self._decided = True
            mean = self._computed if self._computed_mean is None else self._computed_mean
            self._computed_mean = mean + (self._computed - mean) / _COMPUTED_MEMORY
            self._computed = 0
        if self.decoder != "projective":
            solved = least_squares_coefficients(self.code, list(self._counted))
            return Decoding(dict(zip(self._counted, solved.tolist(), strict=True)))
        counted = self._positions
        others = len(counted) - (self.own in self._counted)
        expected = len(self._expected) - (self.own in self._expected)
        factors = self.tilt[counted] * (expected / others if others else 1.0)
        if self.feedback and self.stale == "drop":
            factors = np.full(len(counted), expected / (self._computed_mean or others or 1))
        if self.own is not None:
            factors[counted == self.own] = 1.0
        return Decoding(dict(zip(self._counted, (factors[:, None] * self._entries(counted)).tolist(), strict=True)))

    def close(self) -> None:
        """End the open update: its gradient has been decoded from what had arrived."""
        self.updates += 1
        self.inclusions.update(self._counted.keys())
        counted = np.zeros(self.code.n)
        counted[self._positions] = 1.0
        if self._rates is None:
            self._rates = np.full(self.code.n, counted[self._others].sum() / max(1, len(self._others)))
        self._rates += (counted - self._rates) / min(self.updates + _EVEN_PRIOR, _RATE_MEMORY)

    @property
    def tilt(self) -> Floats:
        """(n,): by how much more each worker's codeword counts than it would if all were equally often among the K."""
        tilt = np.ones(self.code.n)
        if self._rates is None or not len(self._others) or self.needed == self._to_come:
            return tilt  # all are waited for: no chance is involved
        rates = self._rates[self._others]
        with np.errstate(divide="ignore"):
            even = np.where(rates > 0, (rates.mean() / rates).clip(1 / _WEIGHT_CLIP, _WEIGHT_CLIP), 1.0)
        tilt[self._others] = even
        return tilt

    @property
    def _positions(self) -> Integers:
        """Workers whose codewords count, in the order in which they came."""
        return np.fromiter(self._counted, np.int64, len(self._counted))

    def _entries(self, counted: Integers) -> Floats:
        """With what each codeword enters each block while all live workers' are added: its version decides."""
        late = [arrival.staleness for arrival in self._counted.values()]
        if len(set(late)) == 1:
            return self._dual(self.code.at(self.version - late[0]))[counted]
        entries, staleness = np.empty((len(counted), self.code.blocks)), np.array(late)
        for versions in set(late):
            its = staleness == versions
            entries[its] = self._dual(self.code.at(self.version - versions))[counted[its]]
        return entries

    def _dual(self, code: Code) -> Floats:
        if code not in self._duals:
            self._duals[code] = live_coefficients(code, self._expected, feedback=self.feedback).numpy()
        return self._duals[code]

    def _find_others(self) -> None:
        self._others = np.array(sorted(self.live - {self.own}), dtype=np.int64)
