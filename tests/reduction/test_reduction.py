"""Ranks add codewords up together: here all of them in one process, with queues for links.

What they decode is compared with the dense product of the decision's weights and the codewords.
"""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from lwpd_lightning.coding import local_code, lwpd_code, uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.staging import Staging
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.received import BadPeer
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks, SharedMemory, SharedSums
from tests.devices import on_each_device

RUN = bytes(range(16))
quick = settings(deadline=None, max_examples=25)
CODES = [lwpd_code(8, 4, 2), lwpd_code(4, 4, 2), local_code(4, 4, 3), uncoded(3), lwpd_code(6, 3, 3)]
SHAPES = [[(3,)], [(5, 3), (7,)], [(60, 50), (9,)], [(600, 300), (17,), (4, 4)]]


@dataclass
class Table:
    """All ranks of a fit around one table; rank 0 is worker 0 or, with ``dedicated``, none of them."""

    code: object
    shapes: list
    wire: str = "float32"
    sum_wire: str = "float32"
    shared: bool = False
    dedicated: bool = False
    along: bool = False
    feedback: bool = False
    window: int = 4
    device: str = "cpu"
    queue: deque = field(default_factory=deque)

    def __post_init__(self):
        self.coordinator = None if self.dedicated else 0
        workers = set(range(self.code.n))
        self.ranks = sorted(workers) + [COORDINATOR] * self.dedicated
        blocks = self.blocks()
        self.size, self.wires = blocks.block_size, (wire_format(self.wire), wire_format(self.sum_wire))
        self.memory = None
        if self.shared:
            self.memory = SharedMemory.take(
                self.code.n,
                codeword=self.wires[0].nbytes(self.size),
                update=self.wires[1].nbytes((1 if self.along else self.code.blocks) * self.size),
                window=self.window,
            )
        self.messages = Messages(RUN, self.memory.arena if self.shared else None)
        self.reductions = {}
        for rank in self.ranks:
            me, blocks = None if rank == COORDINATOR else rank, self.blocks()
            way = Ranks(me, self.coordinator, set(workers)), self.size, *self.wires, self.messages, self.sends(rank)
            self.reductions[rank] = Reduction(
                blocks,
                SharedSums(*way, self.memory) if self.shared else MessageSums(*way),
                ErrorFeedback(self.code, rank, blocks) if self.feedback and me is not None else None,
                LinearReceiver(self.code, blocks, one_version=self.along),
            )

    def blocks(self):
        shapes, device = self.shapes, self.device
        return BlockMap([Parameter(torch.zeros(shape, device=device)) for shape in shapes], self.code.blocks)

    def sends(self, rank):
        def send(to, frames):
            to = 0 if to == COORDINATOR and not self.dedicated else to
            assert to != rank
            self.queue.append((rank, to, [memoryview(bytearray(frame)) for frame in frames]))

        return send

    def offer(self, seed):
        """Every worker has a codeword; returns them as the reducers will read them, by worker."""
        generator, arrived = torch.Generator().manual_seed(seed), {}
        for worker in range(self.code.n):
            exact = torch.randn(self.size, generator=generator).to(self.device)
            packed = Staging(exact.device).to_host(self.wires[0].pack(exact))
            if self.shared:
                packed = self.memory.codewords[worker].copy_(packed)
            self.reductions[worker].offer(Codeword(exact, packed))
            arrived[worker] = exact.cpu(), self.wires[0].unpack(packed.clone(), self.size).float()
        return arrived

    def decide(self, number, workers, seed, version=0, reducers=None):
        rows = 1 if self.along else self.code.blocks
        weights = torch.randn(rows, len(workers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        touched = [True] * len(self.shapes)
        self.reductions[COORDINATOR if self.dedicated else 0].sums.announce(number)
        return Decision(number, version, list(workers), reducers or len(workers), weights, touched)

    def deliver(self, order, deliveries=None):
        """Deliver what is queued, and what comes of it: links keep their order, anything else is up to ``order``."""
        while self.queue and deliveries != 0:
            links = {(sender, to): None for sender, to, _ in self.queue}
            sender, to = order.choice(list(links))
            position = next(i for i, (s, t, _) in enumerate(self.queue) if (s, t) == (sender, to))
            frames = self.queue[position][2]
            del self.queue[position]
            self.take(to, frames)
            deliveries = None if deliveries is None else deliveries - 1

    def take(self, to, frames):
        header, payload, _ = self.messages.read(frames)
        if header.op is Op.SLICE:
            self.reductions[to].slice_arrived(header, payload)
        else:
            self.reductions[to].sum_arrived(header, payload)

    def decoded(self, rank, number):
        reduction = self.reductions[rank]
        if not self.shared or rank == (COORDINATOR if self.dedicated else 0):
            assert reduction.complete(number)
        assert reduction.readable(number)
        assert reduction.scatter(number)
        return reduction.blocks.gather()


def expected(table, decision, codewords):
    """weights @ codewords, each reducer's own slice unrounded, and each part rounded as it travels: (rows, d)."""
    sums = []
    for piece in decision.slices(table.size):
        stacked = torch.stack([codewords[w][0 if w == piece.reducer else 1] for w in decision.workers])
        total = decision.weights @ stacked[:, piece.start : piece.stop].double()
        wire = table.wires[1]
        packed = wire.pack(total.float().flatten())
        sums.append((total, wire.unpack(packed, total.numel()).view(total.shape)))
    return [torch.cat([piece[i].double() for piece in sums], dim=1) for i in range(2)]


def check(table, decision, codewords):
    """All ranks decoded the same, bit for bit, and it is what the decision says."""
    exact, _ = expected(table, decision, codewords)
    gradients = [table.decoded(rank, decision.number) for rank in table.ranks]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    if table.along:
        exact = torch.outer(table.code.at(decision.version).direction, exact[0])
    # Padding is in no parameter.
    for p in (reference := table.blocks()).parameters:
        p.grad = torch.zeros_like(p)
    reference.scatter(exact.float(), None)
    scale = exact.abs().max()
    within = {"float64": 1e-6, "float32": 1e-6, "bfloat16": 2**-8, "int8": 1 / 250}[table.sum_wire]
    assert (gradients[0] - reference.gather()).abs().max() <= (within + 1e-6) * scale


@quick
@given(
    st.sampled_from(CODES), st.sampled_from(SHAPES), st.sampled_from(["float32", "bfloat16", "int8"]),
    st.sampled_from(["float32", "bfloat16", "int8"]), st.booleans(), st.booleans(), st.booleans(),
    st.integers(0, 2**20), st.data(),
)  # fmt: skip
def test_every_rank_decodes_the_weighted_sum(code, shapes, wire, sum_wire, shared, dedicated, along, seed, data):
    along = along and code.direction is not None
    table = Table(code, shapes, wire, sum_wire, shared, dedicated, along)
    for number in (1, 2):
        workers = data.draw(st.lists(st.integers(0, code.n - 1), min_size=1, unique=True))
        codewords = table.offer(seed + number)
        reducers = 1 + seed % len(workers)
        decision = table.decide(number, workers, seed, version=number, reducers=reducers)
        order = random.Random(seed)
        # Some hear of the decision late: slices and parts of others may be there before.
        late = [rank for rank in table.ranks if order.random() < 0.5]
        for rank in table.ranks:
            if rank not in late:
                table.reductions[rank].begin(decision)
        table.deliver(order, deliveries=order.randrange(20))
        for rank in late:
            table.reductions[rank].begin(decision)
        table.deliver(order)
        for rank in table.ranks:
            if order.random() < 0.5:
                table.reductions[rank].prepare()
        check(table, decision, codewords)
        for rank in table.ranks:
            table.reductions[rank].commit(number)
            table.reductions[rank].withdraw() if rank != COORDINATOR else None


@on_each_device
@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize(("wire", "sum_wire"), [("float32", "float32"), ("int8", "bfloat16")])
@pytest.mark.parametrize("along", [False, True])
def test_codewords_that_lie_on_a_device_are_added_up_on_the_host(device, code, wire, sum_wire, along):
    along = along and code.direction is not None
    table = Table(code, SHAPES[3], wire, sum_wire, along=along, device=device)
    codewords = table.offer(1)
    decision = table.decide(1, range(code.n), 2)
    for rank in table.ranks:
        table.reductions[rank].begin(decision)
    table.deliver(random.Random(3))
    for rank in table.ranks:
        table.reductions[rank].prepare()
    check(table, decision, codewords)
    assert {p.grad.device.type for p in table.reductions[0].blocks.parameters} == {device}


def test_a_gradient_that_was_decoded_ahead_stays_until_something_else_takes_its_place():
    table = Table(uncoded(3), SHAPES[1])
    worker = table.reductions[2]
    gradients = []
    for number in (1, 2):  # the second instead of the first
        table.offer(number)
        decision = table.decide(number, [1, 2, 0], number)
        for rank in table.ranks:
            table.reductions[rank].begin(decision)
        worker.prepare()  # parts are missing
        table.deliver(random.Random(number))
        for p in worker.blocks.parameters:
            p.grad = None
        worker.prepare()
        gradients.append(worker.blocks.gather())
        assert torch.equal(gradients[-1], table.decoded(0, number))
    assert not torch.equal(*gradients)

    for p in worker.blocks.parameters:
        p.grad = torch.ones_like(p)  # its next codeword's
    table.offer(3)
    assert worker.scatter(2)
    assert torch.equal(worker.blocks.gather(), gradients[1])
    assert worker.scatter(1)
    assert torch.equal(worker.blocks.gather(), gradients[0])


def test_the_sum_does_not_depend_on_who_was_first():
    """Floating point: only one order of adding gives every rank's, and every run's, bits."""
    gradients = []
    for seed in range(6):
        table = Table(lwpd_code(8, 4, 2), SHAPES[3])
        table.offer(5)
        decision = table.decide(1, range(8), 5)
        order = random.Random(seed)
        for rank in order.sample(table.ranks, 8):
            table.reductions[rank].begin(decision)
        table.deliver(order)
        gradients.append(table.decoded(0, 1))
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("shared", [False, True])
def test_an_update_that_is_decided_again_is_made_by_those_that_are_left(shared):
    table = Table(uncoded(4), SHAPES[3], shared=shared)
    codewords = table.offer(1)
    first = table.decide(1, [1, 2, 3, 0], 1)
    for rank in (0, 1, 2):  # worker 3 dies before it does anything
        table.reductions[rank].begin(first)
    table.deliver(random.Random(1))
    assert table.reductions[0].missing(1) == ([3] if shared else [1, 2, 3, 0])
    second = table.decide(2, [1, 2, 0], 2)
    del table.reductions[3]
    table.ranks.remove(3)
    for rank in table.ranks:
        table.reductions[rank].ranks.workers.discard(3)
        assert table.reductions[rank].hopeless(1)
        table.reductions[rank].begin(second)
    table.deliver(random.Random(2))
    check(table, second, codewords)
    for rank in table.ranks:
        table.reductions[rank].commit(2)
        assert not table.reductions[rank].complete(1)


def test_parts_that_will_never_come_are_known_by_what_came_later():
    table = Table(uncoded(3), SHAPES[3])
    late = table.reductions[2]
    kept = []
    for number in (1, 2):
        table.offer(number)
        decision = table.decide(number, [1, 0], number)
        for rank in table.ranks:
            table.reductions[rank].begin(decision)
        table.deliver(random.Random(0)) if number == 2 else None
        if number == 1:
            while table.queue:
                sender, to, frames = table.queue.popleft()
                if to == 2:
                    kept.append((sender, frames))
                else:
                    table.take(to, frames)
            assert not late.hopeless(1)  # nothing later has come: they may be on their way
    assert late.complete(2)
    assert not late.complete(1)
    assert late.hopeless(1)
    for _, frames in kept:
        table.take(2, frames)
    assert late.complete(1)


def held_up():
    """Two reducers, what each sends of decision 1 to the third rank, and that rank, which has heard the decision."""
    table = Table(uncoded(3), SHAPES[3])
    table.offer(1)
    decision = table.decide(1, [1, 0], 1)
    for rank in table.ranks:
        table.reductions[rank].begin(decision)
    kept = {}
    while table.queue:
        sender, to, frames = table.queue.popleft()
        if to == 2:
            kept[sender] = frames
        else:
            table.take(to, frames)
    return table, table.reductions[2], kept


def test_parts_that_will_never_come_are_known_by_what_their_sender_says():
    table, late, kept = held_up()
    table.take(2, kept[0])
    assert table.reductions[1].sent == 1
    late.heard(1, 0)
    assert not late.hopeless(1)
    late.heard(1, table.reductions[1].sent)
    assert late.hopeless(1)


def test_a_rank_says_that_it_has_sent_all_only_when_it_has_added_up():
    table = Table(uncoded(3), SHAPES[3])
    table.offer(1)
    decision = table.decide(1, [1, 0], 1)
    table.reductions[1].begin(decision)
    assert table.reductions[1].sent == 0
    assert table.reductions[1].depends_on(0)
    assert not table.reductions[1].depends_on(2)
    for rank in (0, 2):
        table.reductions[rank].begin(decision)
    assert table.reductions[2].sent == 1
    table.deliver(random.Random(0))
    assert table.reductions[1].sent == 1
    assert not table.reductions[1].depends_on(0)


def test_parts_that_were_on_a_link_that_ended_are_not_waited_for():
    table, late, kept = held_up()
    table.take(2, kept[0])
    late.unlinked(0)
    assert not late.hopeless(1)  # its part is here
    late.unlinked(1)
    assert late.hopeless(1)
    table.take(2, kept[1])  # it was not lost, or the sender is back
    assert late.complete(1)
    assert not late.hopeless(1)


def test_what_comes_ahead_of_decisions_takes_the_room_of_one_slice_a_worker():
    table = Table(uncoded(3), SHAPES[3])
    received = table.reductions[1]._received
    slices = {number: torch.full((40,), number, dtype=torch.uint8) for number in range(1, 200)}
    for number, payload in slices.items():
        for worker in (0, 2):
            received.take_slice(Header(Op.SLICE, RUN, worker, decision=number), payload)
    assert len(received._slices) == 2
    assert list(received.slices(199)) == [0, 2]
    assert received.slices(198) == {}


def test_what_comes_when_its_step_has_been_made_is_not_kept():
    table, late, kept = held_up()
    late.commit(3)
    for frames in kept.values():
        table.take(2, frames)
    assert not late._received._sums
    assert not late._received.decisions


@pytest.mark.parametrize("again", [False, True], ids=["without a codeword", "with the next one"])
def test_who_was_given_up_adds_nothing_up_of_a_decision_that_was_made_before(again):
    """Slices that were under way to it, of workers that are still in, come when it is back."""
    table = Table(uncoded(3), SHAPES[3])
    table.offer(1)
    decision, returned = table.decide(1, [0, 1, 2], 1), table.reductions[1]
    for rank in table.ranks:
        table.reductions[rank].begin(decision)
    returned.abandon()
    if again:
        table.offer(2)
    told = len(table.queue)
    for _, to, frames in list(table.queue):
        if to == 1:
            table.take(to, frames)
    assert len(table.queue) == told
    assert returned.hopeless(1)
    assert not returned.complete(1)


def test_a_decision_that_one_never_heard_of_is_hopeless():
    table = Table(uncoded(3), SHAPES[0])
    assert table.reductions[2].hopeless(7)
    assert not table.reductions[2].complete(7)


def test_shared_memory_keeps_a_windows_worth_of_decisions():
    table = Table(uncoded(3), SHAPES[2], shared=True, window=3)
    gradients = {}
    for number in range(1, 6):
        table.offer(number)
        decision = table.decide(number, [1, 0], number)
        for rank in table.ranks:
            table.reductions[rank].begin(decision)
        table.deliver(random.Random(0))
        gradients[number] = table.decoded(0, number)
        table.reductions[0].commit(number)
    late = table.reductions[2]
    assert [late.readable(number) for number in range(1, 6)] == [False, False, True, True, True]
    for number in (3, 4, 5):
        assert late.scatter(number)
        assert torch.equal(late.blocks.gather(), gradients[number])
    table.reductions[0].sums.announce(6)  # whoever adds up may write its parts over those of 3 from now on
    assert not late.scatter(3)
    assert [late.readable(number) for number in range(3, 6)] == [False, True, True]


@pytest.mark.parametrize("surplus", [-1, 1, 1000])
@pytest.mark.parametrize("before", [False, True])
def test_a_slice_of_another_size_names_its_sender(surplus, before):
    table = Table(uncoded(3), SHAPES[1])
    table.offer(0)
    decision = table.decide(1, [0, 1, 2], 0)
    for worker in (1, 2):
        table.reductions[worker].begin(decision)
    frames = {sender: frames for sender, to, frames in table.queue if to == 0}
    header, payload, _ = table.messages.read(frames[2])
    wrong = torch.zeros(payload.numel() + surplus, dtype=torch.uint8)
    reducer = table.reductions[0]
    if not before:
        reducer.begin(decision)
    table.take(0, frames[1])
    if before:
        reducer.slice_arrived(header, wrong)
    with pytest.raises(BadPeer, match=rf"^worker 2 sent {wrong.numel()} bytes for {table.size} values$") as refused:
        reducer.begin(decision) if before else reducer.slice_arrived(header, wrong)
    assert refused.value.worker == 2


def test_a_part_of_another_size_names_its_sender():
    table = Table(uncoded(3), SHAPES[1])
    table.offer(0)
    decision = table.decide(1, [2, 0, 1], 0)
    for rank in table.ranks:
        table.reductions[rank].begin(decision)
    refused = []
    while table.queue:
        _, to, frames = table.queue.popleft()
        header, payload, _ = table.messages.read(frames)
        if (header.op, to) != (Op.SUM, 1):
            table.take(to, frames)
            continue
        with pytest.raises(BadPeer, match="worker 2 sent") as error:
            table.reductions[1].sum_arrived(header, payload[:-4])
        refused.append(error.value.worker)
    assert refused == [2]
    assert table.reductions[1].missing(1) == [2]


@pytest.mark.parametrize("op", [Op.SLICE, Op.SUM])
def test_what_came_ahead_of_its_decision_and_does_not_fit_names_its_sender(op):
    """All that the decision asks is done nevertheless; without the sender the update is decided again."""
    table = Table(uncoded(4), SHAPES[1])
    codewords = table.offer(0)
    decision = table.decide(1, [2, 0, 1], 0)  # one reducer: worker 2
    victim, liar = (2, 1) if op is Op.SLICE else (1, 2)
    early = Header(op, RUN, liar, decision=1)
    arrived = table.reductions[victim].slice_arrived if op is Op.SLICE else table.reductions[victim].sum_arrived
    arrived(early, torch.zeros(4 * table.size - 4, dtype=torch.uint8))
    for rank in table.ranks:
        if rank == victim:
            with pytest.raises(BadPeer, match=f"^worker {liar} sent {4 * table.size - 4} bytes for") as refused:
                table.reductions[rank].begin(decision)
            assert refused.value.worker == liar
        else:
            table.reductions[rank].begin(decision)
    table.deliver(random.Random(0))
    if op is Op.SUM:
        check(table, decision, codewords)  # the right part came behind the wrong one
    else:
        assert table.reductions[0].complete(1)
    again = table.decide(2, [2, 0] if liar == 1 else [0, 1], 1)
    table.ranks.remove(liar)
    for rank in table.ranks:
        table.reductions[rank].ranks.workers.discard(liar)
        table.reductions[rank].begin(again)
    table.deliver(random.Random(0))
    check(table, again, codewords)


@pytest.mark.parametrize("op", [Op.SLICE, Op.SUM])
def test_of_two_that_sent_what_does_not_fit_the_one_that_counts_is_named(op):
    """What the other sent was asked of nobody, so that the update would go on without it."""
    table = Table(uncoded(4), SHAPES[1])
    table.offer(0)
    reducer = table.reductions[2]
    for liar in (0, 3, 1):
        arrived = reducer.slice_arrived if op is Op.SLICE else reducer.sum_arrived
        arrived(Header(op, RUN, liar, decision=1), torch.zeros(12, dtype=torch.uint8))
    with pytest.raises(BadPeer, match=r"^worker 1 sent 12 bytes") as refused:
        reducer.begin(table.decide(1, [2, 1], 0))
    assert refused.value.worker == 1
    assert reducer.missing(1) == [2]
    assert not table.queue  # worker 2 adds all of it up, and lacks worker 1's


def test_a_part_of_one_that_was_not_asked_is_refused():
    table = Table(uncoded(3), SHAPES[1])
    table.offer(0)
    decision = table.decide(1, [2, 0], 0)
    table.reductions[0].begin(decision)
    header = Header(Op.SUM, RUN, 1, decision=1)
    with pytest.raises(BadPeer, match="worker 1 sent 8 bytes for 0 values"):
        table.reductions[0].sum_arrived(header, torch.zeros(8, dtype=torch.uint8))


def compute(table, worker, number, value):
    """The worker's codeword of a gradient, with what its memory held."""
    reduction = table.reductions[worker]
    for p, piece in zip(
        reduction.blocks.parameters, value.split([p.numel() for p in reduction.blocks.parameters]), strict=True
    ):
        p.grad = piece.view(p.shape).clone()
    reduction.sender.begin(number)
    reduction.sender.add(worker)
    exact = reduction.sender.codeword()
    packed = table.wires[0].pack(exact)
    reduction.offer(Codeword(exact, table.memory.codewords[worker].copy_(packed) if table.shared else packed))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sum_wire", ["float32", "int8"])
def test_with_feedback_nothing_is_lost(shared, sum_wire):
    """What was meant and is not in a memory was decoded: what packing lost, up and down, is in the memories.

    A worker that is not counted keeps all it has; the third update is decided again, since worker 1 dies.
    """
    table = Table(uncoded(4), SHAPES[3], "int8", sum_wire, shared, feedback=True)
    meant, decoded = torch.zeros(4, table.size), torch.zeros(table.size)
    generator, number = torch.Generator().manual_seed(3), 0
    for attempts in ([[1, 2, 3, 0]], [[2, 1, 0]], [[1, 2, 3, 0], [2, 3, 0]], [[3, 2, 0]]):
        live = [1, *attempts[-1]] if len(attempts) > 1 else table.ranks
        for worker in live:
            value = torch.randn(table.size, generator=generator)
            meant[worker] += value
            compute(table, worker, number, value)
        for workers in attempts:
            number += 1
            table.queue.clear()
            weights = torch.full((1, len(workers)), 0.25, dtype=torch.float64)
            decision = Decision(number, number, workers, len(workers), weights, [True] * 3)
            if workers != attempts[0]:
                table.ranks.remove(1)
            for rank in table.ranks:
                if len(attempts) == 1 or rank != 1:
                    table.reductions[rank].begin(decision)
        table.deliver(random.Random(number))
        for rank in table.ranks:
            table.decoded(rank, number)
            table.reductions[rank].commit(number)
        decoded += torch.cat([p.grad.flatten() for p in table.reductions[0].blocks.parameters])
        memories = torch.stack([table.reductions[worker].sender.memory[0] for worker in range(4)])
        torch.testing.assert_close(4 * decoded, (meant - memories).sum(dim=0), rtol=0, atol=1e-4)
        assert memories[0].abs().max() > 1e-3


@pytest.mark.parametrize("dedicated", [False, True])
def test_traffic_is_what_is_sent(dedicated):
    table = Table(lwpd_code(4, 4, 2), SHAPES[3], "int8", "bfloat16", dedicated=dedicated)
    table.offer(0)
    decision = table.decide(1, [2, 1, 3], 0)
    sent = {Op.SLICE: 0, Op.SUM: 0}
    for rank in table.ranks:
        table.reductions[rank].begin(decision)
    while table.queue:
        _, to, frames = table.queue.popleft()
        header, payload, _ = table.messages.read(frames)
        sent[header.op] += payload.numel()
        table.take(to, frames)
    assert table.reductions[0].traffic(1, len(table.ranks)) == (sent[Op.SLICE], sent[Op.SUM])
    assert sent[Op.SLICE] > 0
