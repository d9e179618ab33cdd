"""Solving group by group, and around who is missing, gives what one dense solve of all gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import Code, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.decoders import live_coefficients, spans_wanted, wanted
from lwpd_lightning.coding.groups import groups
from lwpd_lightning.coding.solve import solve

TIGHT = [
    uncoded(7),
    lwpd_code(8, 4, 2),
    lwpd_code(12, 6, 2),
    lwpd_code(12, 4, 2),
    lwpd_code(8, 8, 4),
    local_code(12, 4, 2),
    local_code(16, 2, 4),
    gradient_code(8, stragglers=1, repetition="fractional"),
]
OTHER = [gradient_code(7, stragglers=2), local_code(5, 5, 2).at(1)]
quick = settings(deadline=None, max_examples=60)


@st.composite
def sparse_codes(draw):
    """Rows of few tasks, of which many are alike and some tasks in none."""
    n, data_parts, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    k = data_parts * blocks
    rows = []
    for _ in range(n):
        row = [0.0] * k
        for coordinate in draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=3, unique=True)):
            row[coordinate] = draw(st.sampled_from([1.0, -1.0, 2.0]))
        rows.append(row)
    generator = torch.tensor(rows, dtype=torch.float64)
    generator /= torch.linalg.vector_norm(generator, dim=1, keepdim=True)
    return Code(generator, data_parts, blocks, family="sparse")


def arrivals(draw, code):
    return draw(st.lists(st.integers(0, code.n - 1), min_size=1, unique=True))


def check(code, chosen):
    rows = code.generator[chosen]
    solved = solve(code, chosen)
    dense = torch.linalg.pinv(rows.T, rtol=1e-9) @ wanted(code).T
    torch.testing.assert_close(solved.dual[chosen], dense, rtol=1e-9, atol=1e-9)
    assert solved.rank == int(torch.linalg.matrix_rank(rows, rtol=1e-9))
    assert solved.spans == bool(spans_wanted(code, torch.tensor([chosen])))
    absent = sorted(set(range(code.n)) - set(chosen))
    assert not solved.dual[absent].any()


@quick
@given(st.data())
def test_a_solution_by_groups_is_the_dense_one(data):
    code = data.draw(sparse_codes())
    check(code, arrivals(data.draw, code))


@quick
@given(st.sampled_from(TIGHT + OTHER), st.data())
def test_so_is_that_of_our_codes_with_any_workers_missing(code, data):
    check(code, arrivals(data.draw, code))


@pytest.mark.parametrize("code", TIGHT, ids=repr)
def test_with_few_missing_it_is_the_dense_one_too(code):
    for missing in range(code.n):
        check(code, [worker for worker in range(code.n) if worker not in (missing, (missing + 1) % code.n)])


@quick
@given(sparse_codes())
def test_groups_share_no_task_and_hold_all_that_is_not_zero(code):
    whole = torch.zeros_like(code.generator)
    rows, columns = [], []
    for group in groups([code.generator]):
        for its_rows, its_columns, matrix in zip(group.rows, group.columns, group.matrix, strict=True):
            whole[its_rows[:, None], its_columns] = matrix
            rows += its_rows.tolist()
            columns += its_columns.tolist()
    assert torch.equal(whole, code.generator)
    assert sorted(rows) == list(range(code.n))
    assert len(set(columns)) == len(columns)
    assert set(columns) == set(code.generator.any(dim=0).nonzero().flatten().tolist())


@quick
@given(sparse_codes())
def test_frame_bounds_are_those_of_the_dense_frame(code):
    eigenvalues = torch.linalg.eigvalsh(code.generator.T @ code.generator)
    assert code.frame_bounds == pytest.approx((float(eigenvalues[0]), float(eigenvalues[-1])), abs=1e-9)


def test_frame_bounds_of_a_sketch_are_those_of_its_cycle():
    assert local_code(5, 5, 3).frame_bounds == pytest.approx((1 / 3, 1 / 3))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_groups_are_as_small_as_the_code_lets_them_be(size):
    """What keeps a thousand workers cheap: uncoded, local and sketch fall apart."""
    assert [tuple(g.matrix.shape) for g in uncoded(6).groups] == [(6, 1, 1)]
    assert [tuple(g.matrix.shape) for g in local_code(6 * size, 3 * size, 2).groups] == [(3 * size, 2, 2)]
    assert [tuple(g.matrix.shape) for g in local_code(4, 4, size + 1).groups] == [(4, 1, size + 1)]


def test_a_long_chain_of_shared_tasks_is_one_group():
    code = lwpd_code(128, 64, 2)
    (group,) = code.groups
    assert tuple(group.matrix.shape) == (1, 128, 64)
    live = [worker for worker in range(128) if worker % 9]
    exact = live_coefficients(code, live).T @ code.generator
    assert solve(code, live).spans == torch.allclose(exact, wanted(code))
