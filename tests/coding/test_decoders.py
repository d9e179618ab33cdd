"""Unbiasedness and errors are checked by enumeration of all arrival sets, with exact probabilities."""

import itertools

import pytest
import torch

from lwpd_lightning.coding.decoders import (
    block_coefficients,
    decodable,
    even_inclusion,
    least_squares_coefficients,
    live_coefficients,
    projective_weights,
    wanted,
)
from lwpd_lightning.coding.families import local_code, lwpd_code, uncoded

CODES = [
    lwpd_code(8, 4, 2),
    lwpd_code(6, 3, 3),
    lwpd_code(6, 6, 2),
    lwpd_code(9, 3, 1),
    local_code(6, 2, 2),
    local_code(8, 1, 4),
    uncoded(5),
]
over_codes = pytest.mark.parametrize("code", CODES, ids=repr)


def tasks(code, d=7, seed=0):
    return torch.randn(code.k, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(code, theta):
    """The mean of every block's gradients over the data parts, spelled out: (blocks, d)."""
    return theta.view(code.data_parts, code.blocks, -1).mean(dim=0)


def decoded(code, theta, arrived, inclusion=None):
    total = torch.zeros(code.blocks, theta.shape[1], dtype=torch.float64)
    for worker, weight in zip(arrived, projective_weights(code, arrived, inclusion), strict=True):
        codeword = code.generator[worker] @ theta
        total += weight * torch.outer(block_coefficients(code, worker), codeword)
    return total


@over_codes
def test_wanted_is_the_mean_over_data_parts(code):
    theta = tasks(code)
    torch.testing.assert_close(wanted(code) @ theta, gradient(code, theta))


@over_codes
def test_all_arrivals_give_the_exact_gradient(code):
    theta = tasks(code)
    torch.testing.assert_close(decoded(code, theta, range(code.n)), gradient(code, theta))


@over_codes
def test_projective_is_unbiased_over_all_sets_of_k_arrivals(code):
    theta = tasks(code)
    for count in range(1, code.n + 1):
        sets = list(itertools.combinations(range(code.n), count))
        mean = sum(decoded(code, theta, s) for s in sets) / len(sets)
        torch.testing.assert_close(mean, gradient(code, theta))


@over_codes
def test_projective_is_unbiased_when_worker_0_always_counts(code):
    theta = tasks(code)
    for count in range(2, code.n + 1):
        inclusion = even_inclusion(code.n, count, own=0)
        sets = [(0, *others) for others in itertools.combinations(range(1, code.n), count - 1)]
        mean = sum(decoded(code, theta, s, inclusion) for s in sets) / len(sets)
        torch.testing.assert_close(mean, gradient(code, theta))


@over_codes
def test_projective_is_unbiased_for_uneven_arrivals_with_their_inclusion_probabilities(code):
    theta = tasks(code)
    sets = list(itertools.combinations(range(code.n), 3))
    probability = torch.rand(len(sets), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.01
    probability /= probability.sum()
    inclusion = [sum(float(p) for p, s in zip(probability, sets, strict=True) if i in s) for i in range(code.n)]
    mean = sum(p * decoded(code, theta, s, inclusion) for p, s in zip(probability, sets, strict=True))
    torch.testing.assert_close(mean, gradient(code, theta))
    # The paper's k/K is biased here: the weights matter.
    even = sum(p * decoded(code, theta, s) for p, s in zip(probability, sets, strict=True))
    assert not torch.allclose(even, gradient(code, theta), rtol=1e-3)


@pytest.mark.parametrize("code", [c for c in CODES if c.n <= 8], ids=repr)
def test_projective_error_for_isotropic_tasks(code):
    """E|theta_hat - theta|^2 / E|theta|^2 = (n-K)(k-1) / (K(n-1)) for every unit-norm tight frame."""
    n, k = code.n, code.k
    for count in range(1, n + 1):
        errors = []
        for arrived in itertools.combinations(range(n), count):
            rows = code.generator[list(arrived)]
            operator = projective_weights(code, arrived)[0] * rows.T @ rows - torch.eye(k, dtype=torch.float64)
            errors.append(float((operator**2).sum()) / k)
        assert sum(errors) / len(errors) == pytest.approx((n - count) * (k - 1) / (count * (n - 1)))


def test_projective_weights_are_the_papers_k_over_K():
    torch.testing.assert_close(projective_weights(lwpd_code(8, 4, 2), [7, 2, 5]), torch.full((3,), 4 / 3).double())


def test_even_inclusion_sums_to_K():
    for n, count in [(5, 1), (5, 3), (5, 5), (2, 1)]:
        assert sum(even_inclusion(n, count, own=None)) == pytest.approx(count)
        assert sum(even_inclusion(n, count, own=1)) == pytest.approx(count)
    assert even_inclusion(1, 1, own=0) == [1.0]


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda: even_inclusion(4, 5, None), r"K=5 with n=4 workers: use K in 1..4."),
        (lambda: even_inclusion(4, 0, None), "K=0"),
        (lambda: even_inclusion(4, 2, 4), "own=4 with n=4 workers: use None or a worker in 0..3."),
        (lambda: projective_weights(uncoded(3), [0, 1], [1.0, 0.0, 0.5]), r"inclusion\[1\]=0.0"),
        (lambda: projective_weights(uncoded(3), [0, 1], [1.0, float("nan"), 0.5]), r"inclusion\[1\]=nan"),
        (lambda: projective_weights(uncoded(3), [0, 1], [1.0, 0.5]), "inclusion has 2 probabilities for n=3"),
        (lambda: least_squares_coefficients(uncoded(3), [3]), r"workers \[3\] with n=3"),
        (lambda: live_coefficients(uncoded(3), set()), r"workers \[\] with n=3"),
    ],
)
def test_bad_settings_are_named(call, needle):
    with pytest.raises(ValueError, match=needle):
        call()


def test_least_squares_is_exact_for_every_5_of_8():
    code = lwpd_code(8, 4, 2)
    theta = tasks(code)
    for arrived in itertools.combinations(range(8), 5):
        assert decodable(code, arrived)
        codewords = code.generator[list(arrived)] @ theta
        torch.testing.assert_close(least_squares_coefficients(code, arrived).T @ codewords, gradient(code, theta))


def every_set(code):
    return [list(s) for K in range(1, code.n + 1) for s in itertools.combinations(range(code.n), K)]


@over_codes
def test_least_squares_is_exact_just_where_decodable_and_never_worse_than_projective(code):
    for arrived in every_set(code):
        rows = code.generator[arrived]
        error = least_squares_coefficients(code, arrived).T @ rows - wanted(code)
        assert decodable(code, arrived) == torch.allclose(error, torch.zeros_like(error), atol=1e-10)
        # Normal equations: what is left is orthogonal to all that arrived.
        torch.testing.assert_close(error @ rows.T, torch.zeros(code.blocks, len(arrived), dtype=torch.float64))
        coefficients = torch.stack([block_coefficients(code, worker) for worker in arrived])
        projective = (projective_weights(code, arrived)[:, None] * coefficients).T @ rows - wanted(code)
        assert error.norm() <= projective.norm() + 1e-12


@over_codes
def test_with_all_alive_the_live_coefficients_are_the_projective_ones(code):
    expected = torch.stack([block_coefficients(code, worker) for worker in range(code.n)]) * code.k / code.n
    torch.testing.assert_close(live_coefficients(code, range(code.n)), expected, rtol=0, atol=1e-15)


@over_codes
def test_the_live_codewords_sum_to_the_exact_gradient_wherever_they_span_it(code):
    theta = tasks(code)
    for live in every_set(code):
        coefficients = live_coefficients(code, set(live))
        assert coefficients.shape == (code.n, code.blocks)
        assert not coefficients[[worker for worker in range(code.n) if worker not in live]].any()
        total = coefficients.T @ (code.generator @ theta)
        assert decodable(code, live) == torch.allclose(total, gradient(code, theta), rtol=1e-9, atol=1e-9)


def test_the_live_coefficients_of_uncoded_are_the_mean_over_what_is_left():
    code = uncoded(5)
    theta = tasks(code)
    total = live_coefficients(code, {1, 4}).T @ (code.generator @ theta)
    torch.testing.assert_close(total, (theta[[1]] + theta[[4]]) / 2)


@pytest.mark.parametrize("code", [uncoded(5), lwpd_code(6, 6, 2)], ids=repr)
def test_the_live_coefficients_of_an_orthonormal_code_are_unbiased_over_who_died(code):
    theta = tasks(code)
    for alive in range(1, code.n):
        sets = list(itertools.combinations(range(code.n), alive))
        mean = sum(live_coefficients(code, live).T @ (code.generator @ theta) for live in sets) / len(sets)
        torch.testing.assert_close(mean, gradient(code, theta))


def test_the_live_coefficients_of_8_4_2_are_within_5_percent_of_unbiased_over_who_died():
    code = lwpd_code(8, 4, 2)
    for alive in range(1, 8):
        sets = list(itertools.combinations(range(8), alive))
        mean = sum(live_coefficients(code, live).T @ code.generator for live in sets) / len(sets)
        assert (mean - wanted(code)).norm() <= 0.05 * wanted(code).norm()
