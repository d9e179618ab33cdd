"""Gradient codes of Tandon et al.: exact from any n - s codewords, for both constructions, by every set of erasures."""

import itertools

import pytest
import torch

from lwpd_lightning.coding.decoders import decodable
from lwpd_lightning.coding.families import gradient_code

BOTH = [(8, s, "cyclic") for s in range(5)] + [(8, s, "fractional") for s in (0, 1, 3, 7)]
over_both = pytest.mark.parametrize(("n", "s", "repetition"), BOTH)


@over_both
def test_the_gradient_is_exact_for_every_set_of_s_erasures(n, s, repetition):
    code = gradient_code(n, s, repetition)
    theta = torch.randn(code.k, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = theta.mean(dim=0)
    sets = list(itertools.combinations(range(n), n - s))
    for arrived in sets:
        weights = code.decoding_weights(arrived, "exact")
        assert weights.shape == (n - s, 1)
        decoded = weights.T @ (code.generator[list(arrived)] @ theta)
        torch.testing.assert_close(decoded[0], wanted, rtol=0, atol=1e-12 * float(theta.abs().max()) * n * n)
    assert code.recovery_threshold == n - s
    assert code.recovery_profile()[n - s] == 1


@over_both
def test_every_set_of_more_arrivals_is_exact_too(n, s, repetition):
    code = gradient_code(n, s, repetition)
    for count in range(n - s, n + 1):
        assert all(decodable(code, arrived) for arrived in itertools.combinations(range(n), count))


@over_both
def test_fewer_arrivals_are_told_apart(n, s, repetition):
    code = gradient_code(n, s, repetition)
    if s == n - 1:
        return  # one codeword is enough, and there is no fewer
    undecodable = [
        arrived
        for arrived in itertools.combinations(range(n), n - s - 1)
        if code.decoding_weights(arrived, "exact") is None
    ]
    assert undecodable
    if repetition == "cyclic":  # rows in general position: no n - s - 1 of them hold the row of ones
        assert len(undecodable) == len(list(itertools.combinations(range(n), n - s - 1)))


@pytest.mark.parametrize(("n", "s"), [(4, 1), (5, 2), (8, 3), (16, 4), (18, 4), (32, 8)])
def test_cyclic_repetition_gives_every_worker_its_s_plus_1_neighbours(n, s):
    code = gradient_code(n, s)
    assert (code.n, code.k, code.t, code.data_parts, code.blocks) == (n, n, s + 1, n, 1)
    assert [set(code.parts(worker)) for worker in range(n)] == [{(i + j) % n for j in range(s + 1)} for i in range(n)]
    assert int(torch.linalg.matrix_rank(code.generator)) == n - s
    assert torch.equal(code.generator, gradient_code(n, s).generator)
    assert not code.is_tight
    random = torch.Generator().manual_seed(1)
    for _ in range(50):
        arrived = torch.randperm(n, generator=random)[: n - s].tolist()
        weights = code.decoding_weights(arrived, "exact")
        torch.testing.assert_close(
            weights[:, 0] @ code.generator[arrived], torch.full((n,), 1 / n, dtype=torch.float64), rtol=0, atol=1e-10
        )
        if n <= 8:  # what the rounding of codewords is multiplied by, against plain averaging
            assert weights.norm() * n**0.5 < 50


@pytest.mark.parametrize(("n", "s"), [(6, 1), (8, 3), (12, 2), (9, 8)])
def test_fractional_repetition_is_a_tight_frame_of_groups(n, s):
    code = gradient_code(n, s, "fractional")
    assert (code.data_parts, code.k, code.t, code.blocks) == (n // (s + 1), n // (s + 1), 1, 1)
    assert [code.parts(worker) for worker in range(n)] == [(worker // (s + 1),) for worker in range(n)]
    assert code.is_tight
    assert code.frame_bounds == pytest.approx((s + 1, s + 1))


def test_no_stragglers_is_no_redundancy():
    for repetition in ("cyclic", "fractional"):
        torch.testing.assert_close(gradient_code(5, 0, repetition).generator, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((8, 8), "stragglers=8 with n=8 workers: use 0..7."),
        ((8, -1), "stragglers=-1 with n=8 workers"),
        ((0, 0), "stragglers=0 with n=0 workers"),
        ((8, 2, "fractional"), "do not divide n=8 workers; use stragglers in 0, 1, 3, 7, or repetition='cyclic'."),
        ((8, 2, "random"), "repetition='random': use 'cyclic' or 'fractional'."),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=r"\.$") as error:
        gradient_code(*arguments)
    assert sentence in str(error.value)


def test_the_projective_decoder_needs_a_tight_frame():
    with pytest.raises(ValueError, match=r"no tight frame.*use decoder='exact'"):
        gradient_code(8, 2).decoding_weights(range(8), "projective")
    weights = gradient_code(8, 3, "fractional").decoding_weights(range(8), "projective")
    torch.testing.assert_close(weights, torch.full((8,), 1 / 4, dtype=torch.float64))
