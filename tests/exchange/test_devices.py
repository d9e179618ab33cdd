"""A model's state on a device: packed through pinned memory, taken over by another, hashed where it is."""

import copy

import pytest
import torch
from torch import nn

from lwpd_lightning.data.randomness import drawing_from
from lwpd_lightning.exchange.state import Checksums, StateLayout, from_bytes, to_bytes, whole_state
from lwpd_lightning.links.staging import Staging
from tests.devices import on_each_device


def model(device, seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3).bfloat16(), nn.Embedding(7, 2))
    module[3].requires_grad_(False)
    module.register_buffer("seen", torch.arange(3))
    module.register_buffer("none", torch.zeros(0))
    return module.to(device)


def tensors(module):
    return [*module.parameters(), *module.buffers()]


@on_each_device
@pytest.mark.parametrize("kind", ["everything", "buffers", "statistics"])
def test_a_state_travels_through_the_host(device, kind):
    device = torch.device(device)
    one, other = model(device), model(device, seed=1)
    for module in (one, other):
        module[1](torch.randn(8, 4, device=device))
    layouts = [getattr(StateLayout, kind)(module, device) for module in (one, other)]
    assert layouts[0].digest() == layouts[1].digest()
    buffer = layouts[0].buffer()
    assert buffer.device.type == "cpu"
    assert buffer.is_pinned() == (device.type == "cuda")
    layouts[0].pack(buffer)
    layouts[1].unpack(buffer.clone())  # as it comes from a socket, in memory of no particular kind
    again = layouts[1].buffer()
    layouts[1].pack(again)
    assert torch.equal(again, buffer)
    alike = [torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True)]
    assert all(alike) == (kind == "everything")
    assert one[1].running_mean.tolist() == other[1].running_mean.tolist()


@on_each_device
def test_packing_waits_for_what_the_device_is_still_computing(device):
    device = torch.device(device)
    module = nn.Linear(1500, 1500, bias=False).to(device)
    layout = StateLayout.everything(module, device)
    buffer = layout.buffer()
    with torch.no_grad():
        for _ in range(5):
            module.weight.copy_(module.weight @ module.weight)
        module.weight.fill_(3.0)
    layout.pack(buffer)
    assert (buffer.view(torch.float32) == 3.0).all()


@on_each_device
def test_statistics_are_averaged_from_the_host(device):
    device = torch.device(device)
    module = model(device)
    layout = StateLayout.statistics(module, device)
    payloads = []
    for value in (1.0, 3.0):
        module[1].running_mean.fill_(value)
        module[1].num_batches_tracked.fill_(int(value))
        payloads.append(layout.buffer())
        layout.pack(payloads[-1])
    layout.average(payloads)
    assert module[1].running_mean.tolist() == [2.0] * 4
    assert int(module[1].num_batches_tracked) == 3


@on_each_device
def test_staging_gives_the_bytes_of_the_last_call(device):
    staging = Staging(torch.device(device))
    for size in (100, 100, 7):
        payload = torch.randint(0, 256, (size,), dtype=torch.uint8).to(device)
        staged = staging.to_host(payload)
        assert staged.device.type == "cpu"
        assert staged.is_pinned() == (device == "cuda")
        assert torch.equal(staged, payload.cpu())
        assert staged.numpy().data.nbytes == size


@on_each_device
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_who_takes_over_a_state_steps_as_its_owner(device, name):
    device = torch.device(device)
    settings = {"momentum": 0.9} if name == "SGD" else {}
    modules = [model(device), model(device, seed=1)]
    optimizers = [getattr(torch.optim, name)(module.parameters(), lr=0.1, **settings) for module in modules]
    scalers = [torch.amp.GradScaler(device.type, init_scale=scale) for scale in (8.0, 2.0)]
    step(modules[0], optimizers[0], 1.0)
    everything = [StateLayout.everything(module, device) for module in modules]
    state = whole_state(
        everything[0], optimizers[0], scalers[0], {"scale": torch.ones(2), "mask": torch.ones(2, device=device)}
    )
    everything[1].unpack(state[: everything[1].nbytes])
    told = from_bytes(state[everything[1].nbytes :], device)
    optimizers[1].load_state_dict(told["optimizer"])
    scalers[1].load_state_dict(told["precision"])
    assert {name: tensor.device.type for name, tensor in told["attributes"].items()} == {
        "scale": "cpu", "mask": device.type,
    }  # fmt: skip
    assert scalers[1].get_scale() == 8.0
    places = [[tensor.device for of in optimizer.state.values() for tensor in of.values()] for optimizer in optimizers]
    assert places[0] == places[1]
    for module, optimizer in zip(modules, optimizers, strict=True):
        step(module, optimizer, 0.5)
    sums = [Checksums(module, [p for p in module.parameters() if p.requires_grad]).take() for module in modules]
    assert sums[0] == sums[1]


def step(module, optimizer, value):
    for p in module.parameters():
        p.grad = torch.full_like(p, value) if p.requires_grad else None
    optimizer.step()


def test_a_tensor_that_was_on_the_host_stays_there():
    """An optimizer counts its steps there, a module may keep a table there."""
    assert from_bytes(to_bytes({"table": torch.ones(2)}), torch.device("meta"))["table"].device.type == "cpu"


@on_each_device
def test_the_checksum_tells_trainable_and_rest_apart(device):
    module = model(device)
    trainable = [p for p in module.parameters() if p.requires_grad]
    checksums = Checksums(module, trainable)
    known = checksums.take()
    assert checksums.take() == known
    assert Checksums(copy.deepcopy(module), []).take().trainable != known.trainable
    with torch.no_grad():
        module.seen[1] += 1
    assert checksums.take().trainable == known.trainable
    assert checksums.take().rest != (rest := known.rest)
    with torch.no_grad():
        module.seen[1] -= 1
        trainable[0][0, 0] += 1
    assert checksums.take().rest == rest
    assert checksums.take().trainable != known.trainable


@on_each_device
def test_random_numbers_of_a_device_are_those_of_the_seed_and_disturb_nobody(device):
    device = torch.device(device)

    def draw():
        return torch.rand(3, device=device).tolist() + torch.rand(2).tolist()

    torch.manual_seed(1)
    undisturbed = [draw(), draw()]
    torch.manual_seed(1)
    assert draw() == undisturbed[0]
    drawn = []
    for seed in (7, 8, 7):
        with drawing_from(seed, device):
            drawn.append(draw())
    assert drawn[0] == drawn[2] != drawn[1]
    assert draw() == undisturbed[1]
