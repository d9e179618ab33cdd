"""The noise of decoded gradients, against decoding many random ones and against the formulas of the literature."""

import itertools
import math

import pytest
import torch

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.decoders import decodable, least_squares_coefficients, live_coefficients
from lwpd_lightning.coding.noise import decoded_noise


@pytest.mark.parametrize(("n", "blocks"), [(8, 4), (8, 8), (6, 2)])
def test_without_batch_noise_it_is_the_erasure_error_of_a_tight_frame(n, blocks):
    noise = decoded_noise(local_code(n, 1, blocks), range(n), batch_noise=0.0)
    expected = [(n - K) * (blocks - 1) / (K * (n - 1)) for K in range(1, n + 1)]
    assert noise[1:] == pytest.approx(expected, abs=1e-12)


def test_parts_of_an_uncoded_batch_are_a_smaller_batch():
    assert decoded_noise(uncoded(8), range(8), batch_noise=0.5)[1:] == pytest.approx([4 / c for c in range(1, 9)])
    # Worker 0 is always there at weight 1/n, m others make up for the rest: 1/n^2 + ((n-1)/n)^2 / m of a part's noise.
    with_0 = decoded_noise(uncoded(8), range(8), own=0)
    assert with_0[:2] == [math.inf, math.inf]
    assert with_0[2:] == pytest.approx([1 / 8 + 49 / (8 * m) for m in range(1, 8)])


def test_the_dead_leave_a_smaller_batch():
    live = {1, 2, 5}
    noise = decoded_noise(uncoded(6), live)
    assert noise[1:4] == pytest.approx([6.0, 3.0, 2.0])
    assert noise[4:] == [math.inf] * 3
    assert decoded_noise(uncoded(6), {0}, own=0)[1] == pytest.approx(6.0)


@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize("live", [range(8), range(7)], ids=["all live", "one dead"])
@pytest.mark.parametrize("code", [lwpd_code(8, 4, 2), local_code(8, 2, 2), local_code(8, 8, 2)], ids=repr)
def test_it_is_what_decoding_random_gradients_shows(code, live, own):
    """Every arrival set of five, Horvitz-Thompson weights, and gradients drawn after the model."""
    arrivals, batch_noise, dims = 5, 0.7, 4000
    random = torch.Generator().manual_seed(1)
    signal = torch.randn(code.blocks, dims, dtype=torch.float64, generator=random)
    apart = torch.randn(code.data_parts, code.blocks, dims, dtype=torch.float64, generator=random)
    tasks = (signal + math.sqrt(batch_noise * code.data_parts) * apart).flatten(0, 1)
    others = [worker for worker in live if worker != own]
    wanted_others = arrivals - (own is not None)
    dual = live_coefficients(code, live)
    energy = inner = 0.0
    sets = list(itertools.combinations(others, wanted_others))
    for chosen in sets:
        decoded = len(others) / wanted_others * dual[list(chosen)].T @ (code.generator[list(chosen)] @ tasks)
        if own is not None:
            decoded = decoded + torch.outer(*(dual[own], code.generator[own] @ tasks))
        energy += float(decoded.square().sum()) / len(sets)
        inner += float((decoded * signal).sum()) / len(sets)
    measured = energy * float(signal.square().sum()) / inner**2 - 1
    assert decoded_noise(code, live, own=own, batch_noise=batch_noise)[arrivals] == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    ("code", "decoder"), [(lwpd_code(8, 4, 2), "least_squares"), (gradient_code(8, stragglers=3), "exact")]
)
def test_a_solving_decoder_has_batch_noise_alone_where_it_is_exact(code, decoder):
    noise = decoded_noise(code, range(8), decoder=decoder)
    assert all(decodable(code, chosen) for chosen in itertools.combinations(range(8), 5))
    assert noise[5:] == pytest.approx([1.0] * 4)
    assert all(fewer > more for fewer, more in itertools.pairwise(noise[1:6]))


def test_least_squares_is_judged_by_direction_not_by_length():
    """Shrinking a gradient brings it nearer to nothing: its error falls, its worth does not."""
    code = lwpd_code(8, 4, 2)
    noise = decoded_noise(code, range(8), decoder="least_squares", batch_noise=0.0)
    lost = []
    for chosen in itertools.combinations(range(8), 4):
        decoded = least_squares_coefficients(code, chosen).T @ code.generator[list(chosen)]
        signal = decoded.view(2, 2, 2).sum(dim=1)
        lost.append((float(signal.square().sum()) / 2, float(signal.trace()) / 2))
    energy, inner = (sum(values) / len(lost) for values in zip(*lost, strict=True))
    assert noise[4] == pytest.approx(energy / inner**2 - 1, abs=0.03)


def test_a_sketch_loses_directions_unless_they_come_later():
    sketch = local_code(8, 8, 4)
    assert decoded_noise(sketch, range(8), batch_noise=0.0)[8] == pytest.approx(3.0)  # one of four directions
    assert decoded_noise(sketch, range(8), feedback=True)[1:] == pytest.approx([8 / c for c in range(1, 9)])


@pytest.mark.parametrize("options", [{}, {"decoder": "least_squares"}, {"feedback": True}], ids=str)
@pytest.mark.parametrize("live", [[], [0, 8], [1, 1]], ids=str)
def test_it_refuses_whom_it_does_not_know(live, options):
    with pytest.raises(ValueError, match="workers"):
        decoded_noise(local_code(8, 8, 4), live, **options)
