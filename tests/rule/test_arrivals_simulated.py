"""The rule under a simulated clock: a discrete-event simulation of asynchronous descent with hundreds of workers."""

import heapq
import random

import pytest
import torch

from lwpd_lightning.coding import local_code
from lwpd_lightning.rule.arrivals import ArrivalRule

WORKERS, WAIT_FOR, UPDATES, STEP = 200, 140, 40, 0.2
SLOW = range(180, WORKERS)


class Simulation:
    """Descent on a quadratic: task (a, b) has the gradient x[b] - target[a, b], computed at the version received.

    Workers compute for exponential times of mean 1 (slow ones: 4); messages take no time.
    """

    def __init__(self, rule, deaths=()):
        self.rule, self.code = rule, rule.code
        self.clock, self.random = 0.0, random.Random(1)
        generator = torch.Generator().manual_seed(2)
        shape = (self.code.data_parts, self.code.blocks, 3)
        self.targets = torch.randn(shape, dtype=torch.float64, generator=generator)
        self.versions = [torch.full(shape[1:], 10.0, dtype=torch.float64)]
        self.events = [(at, "dies", worker, 0) for at, worker in deaths]
        heapq.heapify(self.events)
        self.closed_at, self.arrivals = [], []

    def start(self, worker):
        seconds = self.random.expovariate(1 / (4 if worker in SLOW else 1))
        heapq.heappush(self.events, (self.clock + seconds, "sends", worker, self.version))

    @property
    def version(self):
        return len(self.versions) - 1

    def codeword(self, worker, version):
        return torch.einsum("ab,abd->d", self.code.coefficients(worker), self.versions[version] - self.targets)

    def run(self, updates):
        idle = sorted(self.rule.live)
        for _ in range(updates):
            self.rule.open(self.version, self.clock)
            for worker in idle:
                self.start(worker)
            idle, codewords = [], {}
            while not self.rule.complete:
                self.clock, what, worker, version = heapq.heappop(self.events)
                if what == "dies":
                    self.rule.lose(worker)
                    codewords.pop(worker, None)
                elif self.rule.counts(worker, version, self.clock):
                    codewords[worker] = self.codeword(worker, version)
                    idle.append(worker)
                elif worker in self.rule.live:
                    self.start(worker)
            self.arrivals.append(self.rule.arrivals)
            coefficients = self.rule.decide(self.clock).coefficients
            assert coefficients.keys() == codewords.keys()
            weights = torch.tensor([coefficients[worker] for worker in codewords], dtype=torch.float64)
            gradient = weights.T @ torch.stack(list(codewords.values()))
            self.versions.append(self.versions[-1] - STEP * gradient)
            self.rule.close()
            self.closed_at.append(self.clock)
            idle = [worker for worker in idle if worker in self.rule.live]

    def distance(self):
        return float((self.versions[-1] - self.targets.mean(dim=0)).norm())


@pytest.mark.parametrize("stale", ["apply", "drop"])
def test_hundreds_of_simulated_workers_descend(stale):
    rule = ArrivalRule(local_code(WORKERS, data_parts=25, blocks=2), WAIT_FOR, stale=stale)
    simulation = Simulation(rule, deaths=[(5.0, 7), (5.5, 190)])
    before = simulation.distance()
    simulation.run(UPDATES)

    assert simulation.distance() < before / 20
    assert simulation.closed_at == sorted(simulation.closed_at)
    assert rule.live == set(range(WORKERS)) - {7, 190}
    counts = [len(arrivals) for arrivals in simulation.arrivals]
    assert counts == [WAIT_FOR] * UPDATES
    assert sum(rule.inclusions.values()) == sum(counts)
    for opened, closed, arrivals in zip(
        [0.0, *simulation.closed_at], simulation.closed_at, simulation.arrivals, strict=False
    ):
        assert [a.delay_s for a in arrivals] == sorted(a.delay_s for a in arrivals)
        assert arrivals[-1].delay_s == pytest.approx(closed - opened)
    late = [a for arrivals in simulation.arrivals for a in arrivals if a.staleness]
    assert bool(late) == (stale == "apply")
    fast = sum(rule.inclusion_rate(w) for w in range(8, 180)) / 172
    slow = sum(rule.inclusion_rate(w) for w in range(180, 190)) / 10
    assert slow < fast / 2


def test_waiting_for_everyone_is_synchronous_descent():
    rule = ArrivalRule(local_code(WORKERS, data_parts=25, blocks=2), WORKERS)
    simulation = Simulation(rule)
    simulation.run(10)
    expected = simulation.versions[0]
    for _ in range(10):
        expected = expected - STEP * (expected - simulation.targets.mean(dim=0))
    torch.testing.assert_close(simulation.versions[-1], expected, rtol=1e-12, atol=1e-12)
    assert all(a.staleness == 0 for arrivals in simulation.arrivals for a in arrivals)
