"""The sketch: one row for all workers, another one in every version."""

import itertools

import pytest
import torch

from lwpd_lightning.coding.decoders import block_coefficients, live_coefficients, projective_weights
from lwpd_lightning.coding.families import local_code
from lwpd_lightning.coding.sketch import SketchCode

SIZES = [(2, 2), (3, 3), (4, 4), (3, 6), (5, 8)]
over_sizes = pytest.mark.parametrize(("n", "blocks"), SIZES)


def sketch(n, blocks):
    return local_code(n, data_parts=n, blocks=blocks)


def tasks(code, seed=0):
    return torch.randn(code.k, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(code, theta):
    return theta.view(code.data_parts, code.blocks, -1).mean(dim=0)


@over_sizes
def test_all_workers_use_one_row_of_an_orthogonal_matrix_at_a_version(n, blocks):
    code = sketch(n, blocks)
    assert (code.n, code.k, code.t, code.data_parts, code.blocks) == (n, n * blocks, blocks, n, blocks)
    for version in range(3 * blocks):
        now = code.at(version)
        rows = [now.coefficients(worker)[worker] for worker in range(n)]
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert (rows[0] != 0).all()
        assert [now.parts(worker) for worker in range(n)] == [(worker,) for worker in range(n)]
        # The sum of codewords is the codeword of the sum.
        theta = tasks(code)
        torch.testing.assert_close((now.generator @ theta).sum(dim=0), n * rows[0] @ gradient(code, theta))


@over_sizes
def test_every_cycle_uses_every_row_once_in_an_order_of_its_own(n, blocks):
    code = sketch(n, blocks)
    orders = []
    for cycle in range(6):
        rows = torch.stack([code.at(cycle * blocks + i).generator[0, :blocks] for i in range(blocks)])
        torch.testing.assert_close(rows @ rows.T, torch.eye(blocks, dtype=torch.float64))
        orders.append(tuple(code.cycle.index(code.at(cycle * blocks + i)) for i in range(blocks)))
        assert sorted(orders[-1]) == list(range(blocks))
    assert len(set(orders)) > 1
    again = sketch(n, blocks)
    assert all(torch.equal(code.at(v).generator, again.at(v).generator) for v in range(4 * blocks))


@over_sizes
def test_over_a_cycle_a_constant_gradient_is_the_mean_of_what_is_decoded(n, blocks):
    code = sketch(n, blocks)
    theta = tasks(code)
    for first in (0, 5 * blocks):
        total = torch.zeros(blocks, 7, dtype=torch.float64)
        for version in range(first, first + blocks):
            now = code.at(version)
            codewords = now.generator @ theta
            weights = code.decoding_weights(range(n))
            for worker in range(n):
                total += weights[worker] * torch.outer(block_coefficients(now, worker), codewords[worker])
        torch.testing.assert_close(total / blocks, gradient(code, theta))


@pytest.mark.parametrize(("n", "blocks"), SIZES[:3])
def test_k_of_n_is_unbiased_over_arrival_sets_and_a_cycle(n, blocks):
    code = sketch(n, blocks)
    theta = tasks(code)
    for count in range(1, n + 1):
        decoded = [
            sum(
                weight * torch.outer(block_coefficients(now, worker), now.generator[worker] @ theta)
                for worker, weight in zip(arrived, projective_weights(now, arrived), strict=True)
            )
            for now in (code.at(version) for version in range(blocks))
            for arrived in itertools.combinations(range(n), count)
        ]
        torch.testing.assert_close(torch.stack(decoded).mean(dim=0), gradient(code, theta))
        assert max(float((d - gradient(code, theta)).norm()) for d in decoded) > 0.1


def test_what_feedback_sends_later_is_not_made_up_for():
    code = sketch(6, 4)
    for live in ({0, 1, 2, 3, 4, 5}, {1, 4, 5}):
        now = code.at(3)
        h = now.generator[0, :4]
        alone, fed_back = live_coefficients(now, live), live_coefficients(now, live, feedback=True)
        for worker in range(6):
            expected = h / len(live) if worker in live else torch.zeros(4, dtype=torch.float64)
            torch.testing.assert_close(fed_back[worker], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(alone[worker], 4 * expected, rtol=0, atol=1e-12)


@over_sizes
def test_figures_are_those_of_a_cycle(n, blocks):
    code = sketch(n, blocks)
    for of in (code, code.at(1)):
        assert of.frame_bounds == pytest.approx((1 / blocks, 1 / blocks))
        assert of.is_tight
        assert of.coherence == 0
    assert set(code.recovery_profile().values()) == {0}  # one version never shows the whole gradient
    assert isinstance(code, SketchCode)
    assert code.family == "sketch"


def test_one_block_is_no_sketch():
    code = local_code(4, data_parts=4, blocks=1)
    assert code.cycle == (code,)
    assert code.at(7) is code
    torch.testing.assert_close(code.generator, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("decoder", ["least_squares", "exact"])
def test_only_the_projective_decoder_goes_with_a_sketch(decoder):
    with pytest.raises(ValueError, match=f"decoder='{decoder}' with Code"):
        sketch(4, 4).decoding_weights([0, 1], decoder)


def test_the_codes_of_a_cycle_share_it():
    code = local_code(3, data_parts=3, blocks=4)
    assert all(turn.cycle is code.cycle for turn in code.cycle)
    assert all(turn.at(version) is code.at(version) for turn in code.cycle for version in range(9))
