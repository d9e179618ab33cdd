"""The noise for all numbers of codewords at once is what each number's own formula says, written out in full."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, noise, uncoded
from lwpd_lightning.coding.decoders import live_coefficients, wanted
from lwpd_lightning.coding.noise import decoded_noise

CODES = [uncoded(6), lwpd_code(8, 4, 2), lwpd_code(8, 8, 4), local_code(8, 2, 2), local_code(6, 6, 2)]
quick = settings(deadline=None, max_examples=40)


def energy(code, decoded, batch_noise):
    """Of (..., blocks, k): its square where the tasks are all ones of each block's, plus independent noise."""
    of_blocks = decoded.unflatten(-1, (code.data_parts, code.blocks)).sum(dim=-2)
    total = of_blocks.square().sum(dim=(-2, -1)) + batch_noise * code.data_parts * decoded.square().sum(dim=(-2, -1))
    return total / code.blocks


def signal(code, decoded):
    of_blocks = decoded.unflatten(-1, (code.data_parts, code.blocks)).sum(dim=-2)
    return float(of_blocks.diagonal(dim1=-2, dim2=-1).mean())


def projective(code, live, own, batch_noise, m):
    others = [worker for worker in sorted(live) if worker != own]
    dual, size, variance = live_coefficients(code, live), len(others), 0.0
    decoded = dual.T @ code.generator
    if m < size:
        each = dual[others][:, :, None] * code.generator[others][:, None, :]
        spread = float(energy(code, each, batch_noise).sum() - energy(code, each.sum(dim=0), batch_noise) / size)
        variance = size * (size - m) / (m * (size - 1)) * max(0.0, spread)
    return (float(energy(code, decoded, batch_noise)) + variance) / signal(code, decoded) ** 2 - 1


@quick
@given(st.sampled_from(CODES), st.data(), st.sampled_from([None, 0, 3]), st.sampled_from([0.0, 0.3, 1.0]))
def test_projective(code, data, own, batch_noise):
    live = data.draw(st.sets(st.integers(0, code.n - 1), min_size=1))
    told = decoded_noise(code, live, own=own, batch_noise=batch_noise)
    here = int(own in live)
    least = min(1 + here, len(live))
    assert told[:least] == [math.inf] * least
    assert told[len(live) + 1 :] == [math.inf] * (code.n - len(live))
    expected = [projective(code, live, own, batch_noise, count - here) for count in range(least, len(live) + 1)]
    assert told[least : len(live) + 1] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("batch_noise", [0.0, 0.7])
@pytest.mark.parametrize("live", [8, 7])
@pytest.mark.parametrize(
    "code", [lwpd_code(8, 4, 2), lwpd_code(12, 4, 4), gradient_code(9, 3), local_code(12, 2, 2)], ids=repr
)
def test_solved(code, live, batch_noise):
    told = decoded_noise(code, range(live), own=2, decoder="least_squares", batch_noise=batch_noise)
    orders = noise._orders(code, [2], [worker for worker in range(live) if worker != 2])
    for count in range(2, live + 1):
        rows = code.generator[orders[:, :count]]
        decoded = wanted(code) @ torch.linalg.pinv(rows, rtol=1e-9) @ rows
        expected = float(energy(code, decoded, batch_noise).mean()) / signal(code, decoded) ** 2 - 1
        assert told[count] == pytest.approx(expected, rel=1e-7, abs=1e-9)
