"""What mutated messages do to an exchange: ``python -m experiments.bench.fuzz [--frames 100000] [--seed 0]``.

Rank 0 and two workers exchange updates of a tiny model in one process, with links that are queues: what is sent comes
from a peer that has proved the run's key. Beside honest messages, copies are delivered whose header, lengths, number of
frames or payloads were changed. Whoever sent one may be given up, and joins again; anything else that comes out of rank
0 or of a worker ends the command with its traceback, as does an update that nobody closes.

Then a worker that was given up goes on talking: mutated copies of all that the others say, in its name or in theirs.
That has no effect: rank 0 and the worker that is left end with the bits of a run without it.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lwpd_lightning.exchange.update import How, Logged, Update
from lwpd_lightning.links.header import COORDINATOR, HEADER_BYTES, Header, Op
from lwpd_lightning.links.mesh import CoordinatorLost
from lwpd_lightning.links.transport import LinkLost, Message, Payload
from lwpd_lightning.rule.membership import Refused
from lwpd_lightning.rule.norms import NormGuard, NormLimit
from lwpd_lightning.rule.patience import Patience

from .tiny import TinyRank

RANKS = 3
# An update that takes longer hangs; a worker that holds one up for longer is given up.
_HANG_S, _PATIENCE_S, _GRACE_S, _JOIN_S = 30.0, 0.05, 0.005, 0.05
# Of messages that have a mutated copy, while all workers count and while one comes back: most of those that were given
# up can do so without another one.
_SHARE, _SHARE_WHILE_AWAY = 0.4, 0.02
_OP_AT, _SIZES_AT = 6, HEADER_BYTES - 16
_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


# What codewords bring with them, in words that are mutated too.
_LOGGED = {"loss": Logged(0.5, "mean", {"prog_bar": True, "batch_size": 8}), "worst": Logged(2.0, "max", {})}


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
        self.share = _SHARE
        self.spared = Op.FAILURE  # a worker's word that ends the run, as its own exceptions do

    def of(self, frames: Sequence[bytes]) -> list[bytes] | None:
        """A copy that differs; None: this time there is none."""
        if not self.left or self._draw.random() > self.share:
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
        if len(copy[0]) >= _OP_AT + 2 and int.from_bytes(copy[0][_OP_AT : _OP_AT + 2], "little") == self.spared:
            return None
        self.left -= 1
        self.made[how] += 1
        return [bytes(frame) for frame in copy]


class Network:
    """All messages under way: of each receiver, from whom they are and on which link.

    Attributes:
        queues: what each rank is still to receive.
        links: the number of each worker's link to rank 0; nothing passes on an older one.
        outcast: a worker from whom all mutated copies come, and to whom nothing is said; None: they come from those
            that said it.
    """

    def __init__(self, mutations: Mutations) -> None:
        self.queues: dict[int, deque[Any]] = {rank: deque() for rank in (COORDINATOR, *range(RANKS))}
        self.links = {worker: worker for worker in range(1, RANKS)}
        self.outcast: int | None = None
        self._mutations, self._said = mutations, 0

    def send(self, sender: int, to: int, frames: Sequence[Payload]) -> None:
        """Deliver a message, perhaps with a mutated copy before it."""
        honest = [bytes(frame) for frame in frames]
        if self.outcast is None:
            self._deliver(sender, to, self._mutations.of(honest))
        else:
            for one in (COORDINATOR, *range(1, RANKS)):
                if one != self.outcast:
                    self._deliver(self.outcast, one, self._mutations.of(self._named(honest)))
        self._deliver(sender, to, honest)

    def _named(self, frames: list[bytes]) -> list[bytes]:
        """A message in the outcast's name, every other time."""
        self._said += 1
        if self._said % 2:
            return frames
        header = Header.unpack(frames[0][:HEADER_BYTES], run_id=frames[0][8:24])
        return [header._replace(worker=self.outcast).pack() + frames[0][HEADER_BYTES:], *frames[1:]]

    def _deliver(self, sender: int, to: int, frames: list[bytes] | None) -> None:
        if frames is not None and to in self.queues and to != self.outcast:
            views = [memoryview(bytearray(frame)) for frame in frames]
            self.queues[to].append(Message(sender, views, self.links.get(sender, 0)))

    def renew(self, worker: int) -> None:
        """Give a worker another link to rank 0, which sees the older one end; what was on that is lost."""
        self.queues[COORDINATOR].append(LinkLost(worker))
        self.links[worker] += RANKS
        kept = [message for message in self.queues[worker] if message.worker != COORDINATOR]
        self.queues[worker].clear()
        self.queues[worker].extend(kept)


class FakeHub:
    """What a `Hub` is to rank 0, over a network of queues, which lets workers run while rank 0 waits."""

    def __init__(self, network: Network) -> None:
        self.refused: set[int] = set()
        self.workers: list[TinyWorker] = []
        self._network, self._used = network, dict[int, int]()

    def send(self, worker: int, frames: Sequence[Payload]) -> None:
        """Deliver a message to a worker, where its link stands."""
        if worker in self._used:
            self.answer(self._used[worker], frames)

    def answer(self, link: int, frames: Sequence[Payload]) -> None:
        """The same on any link."""
        worker = link % RANKS
        if self._network.links.get(worker) == link:
            self._network.send(COORDINATOR, worker, frames)

    def uses(self, worker: int, link: int) -> bool:
        """Whether it is the one that is sent to on."""
        return self._used.get(worker) == link

    def adopt(self, worker: int, link: int) -> None:
        """Send to a worker on this link from now on."""
        self._used[worker] = link

    def events(self, timeout_s: float) -> Iterator[Message | LinkLost]:
        """What has come; workers take their turn."""
        queue, idle = self._network.queues[COORDINATOR], True
        for worker in self.workers:
            idle &= not worker.turn()
        while queue:
            idle = False
            yield queue.popleft()
        if idle and timeout_s:
            time.sleep(0.001)


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
        """Open another link to rank 0."""
        self._network.renew(self._worker)


class TinyWorker:
    """A worker that takes a turn whenever rank 0 looks for messages, and joins again when it is given up."""

    def __init__(self, worker: int, network: Network, returns: Counter[str]) -> None:
        self._links: Any = FakeLinks(worker, network)
        self._returns, self._again = returns, False
        self.rank = TinyRank(worker, RANKS, self._links.send)
        self.rank.logged = _LOGGED
        self._worker = self.rank.worker(self._links, timeout_s=1.0)
        self._worker._ask_in()

    def turn(self) -> bool:
        """Take what has come; whether there was anything to do."""
        busy = False
        if self._again:
            self._again = False
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
                self._again = True
                return True


@dataclass
class Fit:
    """Rank 0 and workers over a network of queues, all there."""

    mutations: Mutations
    happened: Counter[str]
    outcast: int | None = None

    def __post_init__(self) -> None:
        self.network = Network(self.mutations)
        self.network.outcast = self.outcast
        hub: Any = FakeHub(self.network)
        self.rank = TinyRank(0, RANKS, hub.send)
        self.rank.logged = _LOGGED
        self.coordinator = self.rank.coordinator(
            hub, 2, grace_s=_GRACE_S, join_s=_JOIN_S, min_workers=1, returns=True, timeout_s=_HANG_S,
            patience=Patience(_PATIENCE_S, _HANG_S), guard=NormGuard(NormLimit(10.0, of_median=True)),
        )  # fmt: skip
        frames, self.mutations.left = self.mutations.left, 0  # at the start, one that comes to another fit ends it
        workers = [worker for worker in range(1, RANKS) if worker != self.outcast]
        hub.workers += [TinyWorker(worker, self.network, self.happened) for worker in workers]
        self.workers = hub.workers
        if self.outcast is not None:
            self.coordinator._lose(self.outcast, "it is an outcast")
        self.coordinator.admit()
        self.mutations.left = frames

    @property
    def complete(self) -> bool:
        """Whether all workers count."""
        return len(self.coordinator._members.live) == RANKS

    def update(self) -> Update:
        """The next one."""
        return self.rank.update(self.coordinator)

    def models(self) -> list[torch.Tensor]:
        """All parameters, of rank 0 and of each worker, once it has made the last step."""
        self.coordinator.publish(
            0, 0, self.coordinator.version, How.AHEAD, step=self.rank._step
        )  # a version that nobody closes
        for worker in self.workers:
            worker.turn()
        ranks = [self.rank, *(worker.rank for worker in self.workers)]
        return [parameter.detach() for rank in ranks for parameter in rank.model.parameters()]


def fuzz(frames: int, seed: int, report: Callable[[str], None] = lambda line: None) -> tuple[Counter[str], int, int]:
    """Deliver ``frames`` mutated messages of members; returns what happened, and what the last two thirds have added.

    That is in bytes of the process, and in open files.

    Raises:
        TimeoutError: an update was not closed.
    """
    mutations, happened = Mutations(seed, frames), Counter[str]()
    fit = Fit(mutations, happened)
    began, reported = (0, 0), frames
    while mutations.left:
        mutations.share = _SHARE if fit.complete else _SHARE_WHILE_AWAY
        update = fit.update()
        happened.update(updates=1, counted=len(update.arrivals), refused=len(update.refused), resyncs=update.resyncs)
        if mutations.left < frames * 0.7:
            began = began if began[0] else (_memory(), _files())
        if reported - mutations.left >= 5000:
            reported = mutations.left
            report(f"{frames - mutations.left} of {frames} frames, {fit.coordinator.updates} updates")
    happened.update(lost=len(fit.coordinator.failures), **mutations.made)
    return (happened, _memory() - began[0], _files() - began[1]) if began[0] else (happened, 0, 0)


def outcast(frames: int, seed: int) -> tuple[Counter[str], bool]:
    """Deliver ``frames`` mutated messages of a worker that was given up; what happened, and whether a bit changed."""
    mutations, happened = Mutations(seed, frames), Counter[str]()
    mutations.spared = Op.JOIN  # with the right words any process of the run may ask to be let in
    fit = Fit(mutations, happened, outcast=RANKS - 1)
    while mutations.left:
        happened.update(updates=1, counted=len(fit.update().arrivals))
    quiet = Fit(Mutations(seed, 0), Counter(), outcast=RANKS - 1)
    for _ in range(happened["updates"]):
        quiet.update()
    changed = not all(torch.equal(one, other) for one, other in zip(fit.models(), quiet.models(), strict=True))
    happened.update(lost=len(fit.coordinator.failures) - 1, **mutations.made)
    return happened, changed


def _memory() -> int:
    """Bytes in memory now."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=100_000, help="of members, and as many of an outcast")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.getLogger("lwpd_lightning").setLevel(logging.CRITICAL)  # each loss would be a line
    print(f"seed {given.seed}", flush=True)
    started = time.monotonic()
    happened, grown, opened = fuzz(given.frames, given.seed, lambda line: print(line, flush=True))
    _print("members", happened)
    print(
        f"{grown / 2**20:.1f} MiB and {opened} open files more in the last two thirds, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    started = time.monotonic()
    happened, changed = outcast(given.frames, given.seed)
    _print("an outcast", happened)
    print(f"the others' bits are {'others' if changed else 'the same'}, {time.monotonic() - started:.0f} s")
    sys.exit(1 if changed or opened > 0 else 0)


def _print(whose: str, happened: Counter[str]) -> None:
    print(f"frames of {whose}:")
    for name, count in sorted(happened.items()):
        print(f"{name:>16} {count}")


if __name__ == "__main__":
    main()
