"""What mutated messages do to an exchange: ``python -m experiments.bench.fuzz [--frames 100000] [--seed 0]``.

Rank 0 and two workers exchange updates of a tiny model in one process, with links that are queues: what is sent comes
from a peer that has proved the run's key. Beside honest messages, copies are delivered whose header, lengths, number of
frames or payloads were changed. Whoever sent one may be given up, and joins again; anything else that comes out of rank
0 or of a worker ends the command with its traceback, as does an update that nobody closes.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lwpd_lightning.links.header import COORDINATOR, HEADER_BYTES, Op
from lwpd_lightning.links.mesh import CoordinatorLost
from lwpd_lightning.links.transport import LinkLost, Message, Payload
from lwpd_lightning.rule.membership import Refused
from lwpd_lightning.rule.norms import NormGuard, NormLimit
from lwpd_lightning.rule.patience import Patience

from .tiny import TinyRank

RANKS = 3
# An update that takes longer hangs; a worker that holds one up for longer is given up.
_HANG_S, _PATIENCE_S = 30.0, 0.5
# Of messages that have a mutated copy: most of the time an exchange goes on.
_SHARE = 0.1
_OP_AT, _SIZES_AT = 6, HEADER_BYTES - 16
_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Nothing(Exception):
    """Nothing is there to be received."""


class Mutations:
    """Makes copies of messages that are not as they were.

    Args:
        seed: of all choices.
        frames: how many copies to make.
    """

    def __init__(self, seed: int, frames: int) -> None:
        self._draw, self.left, self.made = random.Random(seed), frames, Counter[str]()

    def of(self, frames: Sequence[bytes]) -> list[bytes] | None:
        """A copy that differs; None: this time there is none."""
        if not self.left or self._draw.random() > _SHARE:
            return None
        draw, copy = self._draw, [bytearray(frame) for frame in frames]
        how = draw.choice(("bits", "field", "op", "sizes", "cut", "longer", "frames", "payload"))
        head = copy[0]
        if how == "bits":
            for _ in range(draw.randint(1, 8)):
                head[draw.randrange(len(head))] ^= 1 << draw.randrange(8)
        elif how == "field":
            at = draw.randrange(24, HEADER_BYTES - 8)
            head[at : at + 8] = draw.choice(_NUMBERS).to_bytes(8, "little")
        elif how == "op":
            head[_OP_AT : _OP_AT + 2] = draw.randrange(1, 26).to_bytes(2, "little")
        elif how == "sizes":
            at = _SIZES_AT + 8 * draw.randrange(2)
            head[at : at + 8] = draw.choice((*_NUMBERS, draw.randrange(4096))).to_bytes(8, "little")
        elif how == "cut":
            del head[draw.randrange(len(head)) :]
        elif how == "longer":
            head += draw.randbytes(draw.randint(1, 64))
        elif how == "frames":
            copy = [*copy, bytearray(draw.randbytes(draw.randrange(64)))] if draw.random() < 0.5 else [bytearray()]
        elif len(head) > HEADER_BYTES:
            for _ in range(draw.randint(1, 8)):
                head[draw.randrange(HEADER_BYTES, len(head))] = draw.randrange(256)
        if len(copy[0]) >= _OP_AT + 2 and int.from_bytes(copy[0][_OP_AT : _OP_AT + 2], "little") == Op.FAILURE:
            return None  # a worker's word that ends the run, as its own exceptions do
        self.left -= 1
        self.made[how] += 1
        return [bytes(frame) for frame in copy]


class Network:
    """All messages under way: of each receiver, from whom they are and on which link."""

    def __init__(self, mutations: Mutations) -> None:
        self.queues: dict[int, deque[Any]] = {rank: deque() for rank in (COORDINATOR, *range(RANKS))}
        self._mutations = mutations

    def send(self, sender: int, to: int, frames: Sequence[Payload]) -> None:
        """Deliver a message, perhaps with a mutated copy before it."""
        honest = [bytes(frame) for frame in frames]
        for copy in (self._mutations.of(honest), honest):
            if copy is not None and to in self.queues:
                self.queues[to].append(Message(sender, [memoryview(bytearray(frame)) for frame in copy], sender))


class FakeHub:
    """What a `Hub` is to rank 0, over a network of queues, which lets workers run while rank 0 waits."""

    def __init__(self, network: Network) -> None:
        self.refused: set[int] = set()
        self.workers: list[TinyWorker] = []
        self._network, self._since = network, time.monotonic()

    def send(self, worker: int, frames: Sequence[Payload]) -> None:
        """Deliver a message to a worker."""
        self._network.send(COORDINATOR, worker, frames)

    def answer(self, link: int, frames: Sequence[Payload]) -> None:
        """The same: a worker has one link."""
        self.send(link, frames)

    def uses(self, worker: int, link: int) -> bool:
        """Whether it is the one."""
        return worker == link

    def adopt(self, worker: int, link: int) -> None:
        """It is used already."""

    def events(self, timeout_s: float) -> Iterator[Message | LinkLost]:
        """What has come; workers take their turn."""
        queue, idle = self._network.queues[COORDINATOR], True
        for worker in self.workers:
            idle &= not worker.turn()
        while queue:
            idle = False
            yield queue.popleft()
        if idle and timeout_s:
            time.sleep(0.01)


class FakeLinks:
    """What `WorkerLinks` are to a worker, over a network of queues."""

    def __init__(self, worker: int, network: Network) -> None:
        self.peers = tuple(other for other in range(1, RANKS) if other != worker)
        self.address = f"tcp://127.0.0.1:{1000 + worker}"
        self._worker, self._network, self._queue = worker, network, network.queues[worker]

    def send(self, to: int, frames: Sequence[Payload]) -> None:
        """Deliver a message."""
        self._network.send(self._worker, to, frames)

    def receive(self, timeout_s: float | None) -> Message:
        """The next message."""
        if not self._queue:
            raise Nothing
        return self._queue.popleft()

    @property
    def waiting(self) -> bool:
        """Whether there is one."""
        return bool(self._queue)

    def introduce(self, addresses: Mapping[int, str]) -> None:
        """All are connected."""

    def expect(self, workers: Iterable[int]) -> None:
        """The same."""

    def disconnect(self, worker: int) -> None:
        """And stay so."""

    def renew(self) -> None:
        """Forget what is under way from rank 0, which sees the link end."""
        self._network.queues[COORDINATOR].append(LinkLost(self._worker))
        kept = [message for message in self._queue if message.worker != COORDINATOR]
        self._queue.clear()
        self._queue.extend(kept)


class TinyWorker:
    """A worker that takes a turn whenever rank 0 looks for messages, and joins again when it is given up."""

    def __init__(self, worker: int, network: Network, returns: Counter[str]) -> None:
        self._links: Any = FakeLinks(worker, network)
        self._returns, self._again_at = returns, 0.0
        self._worker = TinyRank(worker, RANKS, self._links.send).worker(self._links, timeout_s=1.0)
        self._worker._ask_in()

    def turn(self) -> bool:
        """Take what has come; whether there was anything to do."""
        busy = False
        if time.monotonic() < self._again_at:
            return False
        if self._again_at:
            self._again_at = 0.0
            self._worker._forget()
            self._worker._entered = False
            self._worker._ask_in()
        while True:
            self._worker._end = None  # a copy may say so
            try:
                self._worker._follow()
                busy = True
            except Nothing:
                return busy
            except (Refused, CoordinatorLost) as reason:
                self._returns[type(reason).__name__] += 1
                self._again_at = time.monotonic() + 0.002
                return True


def fuzz(frames: int, seed: int, report: Callable[[str], None] = lambda line: None) -> tuple[Counter[str], int]:
    """Deliver ``frames`` mutated messages; returns what happened, and by how many bytes the process has grown.

    Raises:
        TimeoutError: an update was not closed.
    """
    mutations, happened = Mutations(seed, frames), Counter[str]()
    network = Network(mutations)
    hub: Any = FakeHub(network)
    rank = TinyRank(0, RANKS, hub.send)
    coordinator = rank.coordinator(
        hub, 2, grace_s=0.05, join_s=0.3, min_workers=1, returns=True, timeout_s=_HANG_S,
        patience=Patience(_PATIENCE_S, _HANG_S), guard=NormGuard(NormLimit(10.0, of_median=True)),
    )  # fmt: skip
    mutations.left = 0  # until all have met: at the start, one that comes to another fit ends it
    hub.workers += [TinyWorker(worker, network, happened) for worker in range(1, RANKS)]
    coordinator.admit()
    mutations.left = frames
    began, reported = 0, frames
    while mutations.left:
        update = rank.update(coordinator)
        happened.update(updates=1, counted=len(update.arrivals), refused=len(update.refused), resyncs=update.resyncs)
        if mutations.left < frames * 0.7:
            began = began or _memory()
        if reported - mutations.left >= 5000:
            reported = mutations.left
            report(f"{frames - mutations.left} of {frames} frames, {coordinator.updates} updates")
    happened.update(lost=len(coordinator.failures), **mutations.made)
    return happened, _memory() - began if began else 0


def _memory() -> int:
    """Bytes in memory now."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}", flush=True)
    started = time.monotonic()
    happened, grown = fuzz(given.frames, given.seed, lambda line: print(line, flush=True))
    for name, count in sorted(happened.items()):
        print(f"{name:>16} {count}")
    print(f"{grown / 2**20:.1f} MiB more in the last two thirds, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
