"""The rotation is one, is undone, gives all ranks the same bits, and coarse values of what it makes are unbiased."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.rotation import Rotation
from lwpd_lightning.coding.wire import CHUNK, format_class
from tests.coding.units import both
from tests.devices import on_each_device

QUICK = settings(deadline=None, max_examples=60)
CPU = torch.device("cpu")
# The first of seed 0 at version 0, and of the largest seed at version 7.
SIGNS = [
    [-1, 1, 1, -1, -1, 1, -1, -1, -1, -1, 1, -1, -1, 1, 1, 1],
    [-1, -1, 1, 1, -1, 1, -1, 1, -1, -1, -1, 1, -1, -1, 1, -1],
]
sizes = st.integers(1, 3 * CHUNK)


def of(size, seed=0, dtype=torch.float32, device=CPU):
    return Rotation(size, seed, dtype, torch.device(device))


def drawn(size, seed, spread=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=random) * torch.rand(size, generator=random) ** spread


@QUICK
@given(size=sizes, version=st.integers(0, 2**62), seed=st.integers(0, 2**63 - 1))
def test_it_keeps_lengths_and_angles_and_is_undone(size, version, seed):
    rotation, values = of(size, seed, torch.float64), drawn(2 * size, seed % 1000).double().view(2, size)
    turned = values.clone()
    for row in turned:
        rotation.turn(row, version)
    torch.testing.assert_close(turned @ turned.T, values @ values.T)
    for row in turned:
        rotation.turn_back(row, version)
    torch.testing.assert_close(turned, values)


@QUICK
@given(size=sizes, version=st.integers(0, 2**62), spread=st.integers(0, 8))
def test_compiled_and_torch_get_the_same_bits(size, version, spread):
    rotation, values = of(size), drawn(size, version % 1000, spread)
    for turn in (rotation.turn, rotation.turn_back):
        compiled, plain = values.clone(), values.clone()
        turn(compiled, version)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "compiled", lambda: None)
            turn(plain, version)
        assert torch.equal(compiled, plain)


@QUICK
@given(size=sizes, version=st.integers(0, 2**62))
def test_it_is_undone_elsewhere_by_the_same_bits(size, version):
    rotation, values = of(size), drawn(size, version % 1000)
    expected = values.clone()
    rotation.turn_back(expected, version)
    for compiled in (kernels.compiled(), None):
        before, out = values.clone(), torch.full_like(values, torch.nan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "compiled", lambda compiled=compiled: compiled)
            rotation.turn_back(before, version, out)
        assert torch.equal(before, values)
        assert torch.equal(out, expected)


@QUICK
@given(counts=st.lists(st.integers(0, 1500), min_size=1, max_size=6), blocks=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_undone_in_a_unit_laid_out_or_not_by_the_same_bits(counts, blocks, seed):
    layout = BlockMap([Parameter(torch.zeros(count)) for count in (*counts, 5)], blocks)
    rotation, values = of(layout.block_size), drawn(layout.block_size, seed)
    plain = values.clone()
    rotation.turn_back(plain, seed)
    for unit in both(layout, torch.Generator().manual_seed(seed)):
        for b in range(blocks):
            out, in_place = torch.full_like(values, torch.nan), values.clone()
            rotation.turn_back(values, seed, out, unit, b)
            rotation.turn_back(in_place, seed, unit=unit, b=b)
            assert torch.equal(out, plain * unit.roots()[b])
            assert torch.equal(unit.roots(b), unit.roots()[b])
            assert torch.equal(in_place, out)


@on_each_device
@pytest.mark.parametrize("size", [1, 700, CHUNK, 2 * CHUNK + 513])
def test_a_device_gets_the_hosts_bits(device, size):
    values = drawn(size, 0)
    here, there = values.clone(), values.to(device)
    of(size).turn(here, 5)
    of(size, device=device).turn(there, 5)
    assert torch.equal(there.cpu(), here)
    of(size).turn_back(here, 5)
    of(size, device=device).turn_back(there, 5)
    assert torch.equal(there.cpu(), here)


def test_signs_are_a_function_of_seed_and_version_that_does_not_change():
    def first(seed, version):
        return of(64, seed)._signs(version)[:16].int().tolist()

    known = [first(0, 0), first(2**63 - 1, 7)]
    assert known == SIGNS
    rotation = of(64)
    assert [rotation._signs(version)[:16].int().tolist() for version in (0, 1, 0)] == [
        first(0, 0), first(0, 1), first(0, 0)
    ]  # fmt: skip
    assert first(0, 0) != first(0, 1) != first(1, 1)


def test_no_value_is_left_alone():
    """Also of a chunk that no power of two divides: what is next to its end is spread over hundreds."""
    for size, place in ((513, 512), (1023, 1022), (3, 2), (CHUNK + 600, CHUNK + 599), (CHUNK, 0)):
        values = torch.zeros(size)
        values[place] = 1.0
        of(size).turn(values, 1)
        assert int((values.abs() > 1e-6).sum()) >= (size - CHUNK * (size > CHUNK)) / 2


@pytest.mark.parametrize("name", ["ternary", "sign"])
@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize("size", [CHUNK, 700])
def test_coarse_values_are_unbiased_over_versions(name, spread, size):
    """Of Gaussian values, and of some that are thousands of times as large as others."""
    rotation, wire, values, count = of(size), format_class(name).unbiased(CPU, seed=0), drawn(size, 3, spread), 3000
    errors = []
    for version in range(count):
        turned = values.clone()
        rotation.turn(turned, version)
        arrived = wire.unpack(wire.pack(turned), size)
        rotation.turn_back(arrived, version)
        errors.append(arrived - values)
    errors = torch.stack(errors).double()
    share = float(errors.square().sum(1).mean() / values.double().square().sum())
    assert share < (0.35 if name == "ternary" else 0.65)  # of Gaussian values 0.23, and pi / 2 - 1
    means, deviations = errors.mean(0), errors.std(0) / count**0.5
    # Signs and sums are not any rotation: beside chance a little is left where values stand far out.
    left = float((means.square().sum() - deviations.square().sum()) / values.double().square().sum())
    assert abs(left) < 1e-4
    if not spread:
        assert float((means / deviations).abs().max()) < 5
        assert 0.85 < float((means / deviations).square().mean()) < 1.15
