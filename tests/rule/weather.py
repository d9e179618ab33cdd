"""A simulated clock under the rule's K-of-n exchange, in whatever weather, with a fixed K or an adaptive one."""

import heapq
import random
from collections import defaultdict

from lwpd_lightning.rule.arrivals import ArrivalRule


class Exchange:
    """Workers compute for about ``COMPUTE_S``, and as much longer as the weather makes them; messages take no time.

    A worker whose codeword counted starts on the next version when it is opened. One whose codeword came too late to
    count starts on the open version at once.

    Args:
        code: the code.
        weather: (worker, version) -> seconds that a worker is late.
        wait_for: K, or an `AdaptiveWait`.
    """

    COMPUTE_S = 0.1
    JITTER = 0.02

    def __init__(self, code, weather, wait_for, *, own=0, stale="apply", seed=0):
        self.adaptive = None if isinstance(wait_for, int) else wait_for
        self.rule = ArrivalRule(code, code.n if self.adaptive else wait_for, own=own, stale=stale)
        self.weather, self.random = weather, random.Random(seed)
        self.clock, self.version, self.events = 0.0, 0, []
        self.idle = sorted(self.rule.live)
        self.late = defaultdict(list)  # versions of the codewords that did not count since the worker last did
        self.chosen, self.closed_at, self.counted, self.returned = [], [], [], []

    def start(self, worker):
        compute = self.COMPUTE_S * (1 + self.JITTER * self.random.random())
        seconds = compute + self.weather(worker, self.version)
        heapq.heappush(self.events, (self.clock + seconds, worker, self.version, seconds))

    def run(self, updates):
        rule = self.rule
        for _ in range(updates):
            if self.adaptive:
                rule.wait_for = self.adaptive.choose(rule.live)
            self.chosen.append(rule.wait_for)
            rule.open(self.version, self.clock)
            for worker in self.idle:
                self.start(worker)
            self.idle, returned = [], []
            while not rule.complete:
                self.clock, worker, version, seconds = heapq.heappop(self.events)
                if self.adaptive and worker in rule.live:
                    self.adaptive.observe(worker, seconds)
                if rule.counts(worker, version, self.clock):
                    self.idle.append(worker)
                    returned += [self.version - late for late in self.late.pop(worker, [])]
                elif worker in rule.live:
                    self.late[worker].append(version)
                    self.start(worker)
            self.counted.append([arrival.staleness for arrival in rule.arrivals])
            self.returned.append(returned)
            rule.close()
            self.closed_at.append(self.clock)
            self.version += 1
            self.idle = [worker for worker in self.idle if worker in rule.live]

    def progress_per_second(self, noise, *, since=0, feedback=False):
        """Of the updates from ``since`` on: the sum of ``1 / (1 + noise + staleness)`` by their time.

        Args:
            noise: relative variance of a gradient of so many codewords.
            since: an update.
            feedback: what came too late counts with the worker's next codeword.
        """
        gained = 0.0
        for counted, returned in list(zip(self.counted, self.returned, strict=True))[since:]:
            delivered = counted + returned if feedback else counted
            gained += 1 / (1 + noise(min(len(delivered), self.rule.code.n)) + sum(delivered) / len(delivered))
        return gained / (self.closed_at[-1] - (self.closed_at[since - 1] if since else 0.0))
