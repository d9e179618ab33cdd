import itertools
import math

import pytest
import torch

from lwpd_lightning.coding.code import Code, Task
from lwpd_lightning.coding.families import local_code, lwpd_code, uncoded


def test_tasks_parts_and_coefficients_describe_the_same_row():
    code = lwpd_code(16, 8, 4)
    for worker in range(code.n):
        row = torch.zeros(code.k, dtype=torch.float64)
        for part, block, coefficient in code.tasks(worker):
            row[part * code.blocks + block] = coefficient
        torch.testing.assert_close(row, code.generator[worker], rtol=0, atol=0)
        torch.testing.assert_close(code.coefficients(worker).flatten(), row, rtol=0, atol=0)
        assert code.parts(worker) == tuple(a for a in range(code.data_parts) if code.coefficients(worker)[a].any())


def test_a_task_is_named():
    assert uncoded(3).tasks(2) == [Task(data_part=2, block=0, coefficient=1.0)]


def test_figures_of_the_paper_code():
    code = lwpd_code(32, 16, 4)
    assert code.coherence == pytest.approx(0.25)
    assert code.projective_distance == pytest.approx(math.sqrt(1 - 0.25**2))
    assert code.frame_bounds == pytest.approx((2, 2))
    assert code.is_tight


def test_figures_of_a_frame_that_is_not_tight():
    code = Code(torch.tensor([[1.0, 0], [0, 1], [0, 1]], dtype=torch.float64), data_parts=2, blocks=1, family="test")
    assert code.frame_bounds == pytest.approx((1, 2))
    assert not code.is_tight
    assert code.coherence == 1
    assert code.projective_distance == 0


def test_a_single_worker_has_no_coherence():
    assert uncoded(1).coherence == 0


@pytest.mark.parametrize(
    ("generator", "data_parts", "blocks", "needle"),
    [
        (torch.eye(4), 2, 2, "generator is torch.float32"),
        (torch.ones(4, dtype=torch.float64), 2, 2, r"of shape \(4,\)"),
        (torch.eye(4, dtype=torch.float64), 2, 3, "k=4 columns for data_parts=2 and blocks=3"),
        (torch.eye(4, dtype=torch.float64), -2, -2, "k=4 columns for data_parts=-2"),
        (2 * torch.eye(4, dtype=torch.float64), 2, 2, "row 0 has norm 2"),
        (torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), 2, 1, "row 1 has norm 0"),
        (torch.full((1, 1), math.nan, dtype=torch.float64), 1, 1, "row 0 has norm nan"),
    ],
)
def test_a_generator_that_is_none_is_refused(generator, data_parts, blocks, needle):
    with pytest.raises(ValueError, match=needle):
        Code(generator, data_parts, blocks, "test")


def test_recovery_of_the_paper_code_at_8_4_2():
    code = lwpd_code(8, 4, 2)
    profile = code.recovery_profile()
    assert profile == {1: 0, 2: 0, 3: 8 / 56, 4: 60 / 70, 5: 1, 6: 1, 7: 1, 8: 1}
    # All four tasks, which is more than the gradient needs, come from 58 of the 70 sets: the 83 % of the design page.
    full = [torch.linalg.matrix_rank(code.generator[list(s)]) == 4 for s in itertools.combinations(range(8), 4)]
    assert sum(map(bool, full)) == 58


@pytest.mark.parametrize("code", [lwpd_code(6, 6, 3), local_code(4, 2, 2), local_code(6, 2, 2), uncoded(4)], ids=repr)
def test_recovery_agrees_with_a_rank_test_set_by_set(code):
    wanted = torch.eye(code.blocks, dtype=torch.float64).repeat(1, code.data_parts)
    for count, share in code.recovery_profile().items():
        sets = list(itertools.combinations(range(code.n), count))
        exact = 0
        for arrived in sets:
            rows = code.generator[list(arrived)]
            rank = torch.linalg.matrix_rank(rows)
            exact += bool(torch.linalg.matrix_rank(torch.cat((rows, wanted))) == rank)
        assert share == exact / len(sets)


def test_sampled_recovery_is_seeded_and_close_to_the_exhaustive_one():
    code = lwpd_code(8, 4, 2)
    sampled = code.recovery_profile(max_sets=60, seed=3)
    assert sampled == code.recovery_profile(max_sets=60, seed=3)
    exact = code.recovery_profile()
    assert all(sampled[count] == exact[count] for count in (1, 2, 3, 5, 6, 7, 8))
    assert sampled[4] != exact[4]
    assert abs(sampled[4] - exact[4]) < 4 * math.sqrt(exact[4] * (1 - exact[4]) / 60)


def test_decoding_weights_follow_the_decoder():
    code = lwpd_code(8, 4, 2)
    projective = code.decoding_weights([6, 1, 4])
    torch.testing.assert_close(projective, torch.full((3,), 4 / 3, dtype=torch.float64))
    weights = code.decoding_weights([6, 1, 4, 0, 3], decoder="least_squares")
    assert weights is not None
    wanted = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(weights.T @ code.generator[[6, 1, 4, 0, 3]], wanted)
    assert code.decoding_weights([0, 1], decoder="least_squares") is None


@pytest.mark.parametrize(
    ("arrived", "settings", "needle"),
    [
        (
            [0, 1],
            {"decoder": "exact"},
            "decoder='exact' with .*: its construction promises the exact gradient from no number",
        ),
        ([0, 0], {}, r"workers \[0, 0\] with n=8"),
        ([8], {}, r"workers \[8\] with n=8"),
        ([-1], {"decoder": "least_squares"}, r"workers \[-1\] with n=8"),
        ([], {}, r"workers \[\] with n=8"),
        ([0], {"decoder": "least_squares", "inclusion": [1.0] * 8}, "inclusion is given"),
    ],
)
def test_decoding_weights_refuse(arrived, settings, needle):
    with pytest.raises(ValueError, match=needle):
        lwpd_code(8, 4, 2).decoding_weights(arrived, **settings)
