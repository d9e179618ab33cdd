import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding.families import local_code, lwpd_code, uncoded

QUICK = settings(deadline=None, max_examples=60)


def supports(code):
    return [frozenset(torch.nonzero(row).flatten().tolist()) for row in code.generator]


def largest_meeting(code):
    """The most coordinates that two rows of different classes share."""
    rows = supports(code)
    return max(len(rows[i] & rows[j]) for i in range(code.n) for j in range(code.n) if i // code.k != j // code.k)


@QUICK
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_every_lwpd_code_is_a_tight_frame_of_orthonormal_classes_and_weight_t(classes, m, t):
    k = m * t
    code = lwpd_code(classes * k, k, t)
    assert (code.n, code.k, code.t, code.data_parts, code.blocks) == (classes * k, k, t, m, t)
    assert {len(support) for support in supports(code)} == {t}
    eye = torch.eye(k, dtype=torch.float64)
    for rows in code.generator.split(k):
        torch.testing.assert_close(rows @ rows.T, eye)
    torch.testing.assert_close(code.generator.T @ code.generator, classes * eye)
    assert code.is_tight


@QUICK
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_a_row_of_an_lwpd_code_has_one_task_of_every_block(classes, m, t):
    code = lwpd_code(classes * m * t, m * t, t)
    for worker in range(code.n):
        assert sorted(task.block for task in code.tasks(worker)) == list(range(t))


def test_lwpd_8_4_2_is_written_out():
    # Columns are tasks (part, block) = (0,0), (0,1), (1,0), (1,1): theta_0..theta_3.
    expected = [
        [1, 1, 0, 0],
        [1, -1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, -1],
        [1, 0, 0, 1],
        [1, 0, 0, -1],
        [0, 1, 1, 0],
        [0, -1, 1, 0],
    ]
    generator = lwpd_code(8, 4, 2).generator
    torch.testing.assert_close(generator * math.sqrt(2), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("n", "k", "t", "coherence"),
    [
        (8, 4, 2, 1 / 2),
        (32, 16, 4, 1 / 4),  # the paper's figure: projective distance 0.968
        (48, 16, 4, 1 / 4),  # three classes over GF(4)
        (64, 16, 4, 1 / 4),
        (512, 64, 8, 1 / 8),  # eight classes over GF(8)
        (27, 9, 3, 4 / 9),  # t = 3: Q is not flat, its largest entry is 2/3
        (72, 36, 6, 2 / 9),
        (75, 25, 5, 9 / 25),
        (36, 12, 2, 1 / 2),  # three classes, m = 6 no prime power, lines meet at most once for all that
        (16, 8, 4, 2 / 4),  # m = 2 < t = 4: lines of different classes meet twice
        (32, 16, 8, 4 / 8),
        (24, 12, 4, 2 / 4),  # m = 3: ceil(4/3)
        (12, 4, 2, 1),  # three classes but m = 2: the third repeats the first
        (8, 4, 4, 1),
        (12, 4, 1, 1),
        (16, 16, 4, 0),
    ],
)
def test_coherence_of_lwpd_codes(n, k, t, coherence):
    assert lwpd_code(n, k, t).coherence == pytest.approx(coherence, abs=1e-12)


@pytest.mark.parametrize(("m", "t"), [(2, 2), (3, 3), (4, 4), (5, 4), (7, 3), (8, 4), (9, 5), (9, 9), (16, 3)])
def test_over_a_prime_power_up_to_m_classes_meet_at_most_once(m, t):
    code = lwpd_code(m * m * t if m * m * t <= 512 else 3 * m * t, m * t, t)
    assert largest_meeting(code) == 1
    assert code.coherence == pytest.approx(float(code.generator.abs().max()) ** 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(1, 6))
def test_coherence_is_the_largest_share_of_a_row_on_the_blocks_where_two_classes_meet(classes, m, t):
    code = lwpd_code(classes * m * t, m * t, t)
    rows = supports(code)
    square = code.generator**2
    shares = [
        float(square[i, list(rows[i] & rows[j])].sum())
        for i, j in itertools.combinations(range(code.n), 2)
        if i // code.k != j // code.k
    ]
    assert code.coherence == pytest.approx(max(shares), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((9, 4, 2), "k=4 does not divide n=9: use k in 1, 3, 9."),
        ((8, 8, 3), "t=3 does not divide k=8: use t in 1, 2, 4, 8."),
        ((8, 4, 0), "t=0 does not divide k=4: use t in 1, 2, 4."),
        ((8, 0, 1), "k=0 does not divide n=8: use k in 1, 2, 4, 8."),
    ],
)
def test_lwpd_refuses_what_does_not_divide(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        lwpd_code(*arguments)


@pytest.mark.parametrize(
    ("n", "data_parts", "blocks", "coherence"),
    [
        (8, 2, 2, math.cos(math.pi / 4)),
        (3, 1, 2, math.cos(math.pi / 3)),
        (10, 2, 2, math.cos(math.pi / 5)),
        (4, 1, 4, 0),
        (6, 2, 3, 0),
        (8, 1, 4, 1 / 2),  # 1/sqrt(B)
        (32, 1, 16, 1 / 4),
        (16, 1, 8, 1 / 2),  # sqrt(2/B)
        (12, 2, 3, 8 / 9),
        (10, 1, 5, 17 / 25),
        (6, 3, 1, 1),
        (5, 5, 1, 0),
    ],
)
def test_local_codes_are_tight_and_need_one_data_part_a_worker(n, data_parts, blocks, coherence):
    code = local_code(n, data_parts, blocks)
    assert (code.n, code.data_parts, code.blocks) == (n, data_parts, blocks)
    assert [code.parts(worker) for worker in range(n)] == [(worker // (n // data_parts),) for worker in range(n)]
    torch.testing.assert_close(code.generator.T @ code.generator, n / code.k * torch.eye(code.k, dtype=torch.float64))
    assert code.coherence == pytest.approx(coherence, abs=1e-12)


@pytest.mark.parametrize("blocks", [3, 5, 7])
def test_the_signs_of_a_doubled_local_code_are_the_best_of_all_for_odd_blocks(blocks):
    code = local_code(2 * blocks, 1, blocks)
    q = code.generator[:blocks]
    every = [
        float((q * torch.tensor(s, dtype=torch.float64) @ q.T).abs().max())
        for s in itertools.product([1.0, -1.0], repeat=blocks)
    ]
    assert code.coherence == pytest.approx(min(every), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ((8, 3, 2), "data_parts=3 does not divide n=8: use data_parts in 1, 2, 4, 8."),
        ((8, 2, 3), "blocks=3 with n/data_parts=4"),
        ((8, 4, 4), "blocks=4 with n/data_parts=2"),
        ((8, 2, 0), "blocks=0 with n/data_parts=4"),
    ],
)
def test_local_refuses_what_has_no_frame(arguments, needle):
    with pytest.raises(ValueError, match="use ") as error:
        local_code(*arguments)
    assert needle in str(error.value)


def test_uncoded_is_one_whole_gradient_a_worker():
    code = uncoded(5)
    assert (code.n, code.k, code.t, code.data_parts, code.blocks, code.family) == (5, 5, 1, 5, 1, "uncoded")
    assert [code.parts(worker) for worker in range(5)] == [(0,), (1,), (2,), (3,), (4,)]
    with pytest.raises(ValueError, match="n=0"):
        uncoded(0)
