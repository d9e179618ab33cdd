"""What ranks build for themselves fits together."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lwpd_lightning.coding import local_code, lwpd_code
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.meeting import Meeting
from lwpd_lightning.reduction.sums import MessageSums, SharedSums
from lwpd_lightning.seat import Seat, shared_memory
from lwpd_lightning.settings import ExchangeSettings

MEETING = Meeting(RunKey.generate(), "localhost", 1, generation=0)


def seat(settings, worker, width=20, kind=b"batches", memory=None):
    loader = SimpleNamespace(seed=3, fingerprint=lambda: kind)
    module = nn.Linear(30, width)
    return Seat(settings, MEETING, worker, module, torch.optim.SGD(module.parameters()), loader, memory)


def settled(**given):
    code = given.pop("code", lwpd_code(4, 4, 2))
    return ExchangeSettings(code=code, **given).resolved(code.n + given.get("dedicated_coordinator", False))


def test_seats_of_one_exchange_know_each_other_by_shapes_code_and_batches():
    settings = settled()
    mine = seat(settings, 0).fingerprint
    assert all(seat(settings, worker).fingerprint == mine for worker in range(1, 4))
    other_code = settled(code=local_code(4, 2, 2))
    others = [seat(settings, 0, width=21), seat(settings, 0, kind=b"others"), seat(other_code, 0)]
    assert len({mine, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(("dedicated", "peers"), [(False, [1, 3]), (True, [0, 1, 3])])
def test_a_worker_has_links_to_all_others_unless_they_share_memory(dedicated, peers):
    settings = settled(dedicated_coordinator=dedicated)
    assert seat(settings, 2).peers == peers
    memory = shared_memory(settings, nn.Linear(30, 20))
    assert seat(settings, 2, memory=memory).peers == []
    ranks = seat(settings, 2).reduction(print).ranks
    assert (ranks.me, ranks.coordinator) == (2, None if dedicated else 0)
    assert isinstance(seat(settings, 2).reduction(print).sums, MessageSums)
    assert isinstance(seat(settings, 2, memory=memory).reduction(print).sums, SharedSums)


def test_a_dedicated_coordinator_makes_no_codewords():
    coordinator = seat(settled(dedicated_coordinator=True), None)
    assert coordinator.sender is None
    assert coordinator.computation(None) is None


def test_a_codeword_that_needs_no_packing_lies_where_others_read_it():
    for settings, lies_there in ((settled(), True), (settled(wire_dtype="int8"), False)):
        memory = shared_memory(settings, nn.Linear(30, 20))
        codeword = seat(settings, 1, memory=memory).sender.codeword()
        assert (codeword.data_ptr() == memory.codewords[1].data_ptr()) == lies_there
        assert codeword.dtype == torch.float32


def test_workers_round_by_numbers_of_their_own():
    """And any of them by the same again, as when it is made anew."""
    settings, codeword = settled(wire_dtype="int8", update_dtype="int8"), torch.full((3000,), 0.3)
    codeword[::1024] = 127.0
    for pack in (lambda of: of.wire.pack(codeword), lambda of: of.sum_wire.pack(codeword)):
        packed = [pack(seat(settings, worker)) for worker in (0, 1, 1)]
        assert not torch.equal(packed[0], packed[1])
        assert torch.equal(packed[1], packed[2])


def test_settings_hold_as_many_updates_as_half_a_model_has_room_for():
    whole, packed = settled(), settled(update_dtype="int8")
    assert [len(shared_memory(settings, nn.Linear(300, 200)).sums) for settings in (whole, packed)] == [2, 2]
    sketch = settled(code=local_code(4, data_parts=4, blocks=4), stale="drop", update_dtype="int8")
    assert len(shared_memory(sketch, nn.Linear(300, 200)).sums) == 7
