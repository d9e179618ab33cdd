"""The complexity table's figures against what the codes say on paper."""

import pytest
import torch

from experiments.bench.complexity import SCHEMES, Case, Operations, exponents, measure, sizes
from lwpd_lightning.links.header import Header, Op

WIDTH = 64
PARAMETERS = 2 * WIDTH * WIDTH + 2 * WIDTH


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_counted_operations_are_the_nonzero_coefficients_times_d(scheme):
    for code, wait_for in sizes(scheme, quick=True)[:4]:
        cost = measure(scheme, code, wait_for, WIDTH, rounds=1)
        d = PARAMETERS // code.blocks
        coefficients = sum(len(code.tasks(worker)) for worker in range(code.n)) * d
        # A sketch's memory has t rows; a codeword is taken off one, and looked at once, whether it is finite.
        memory = code.n * ((code.t - 1) * PARAMETERS + 2 * d) if scheme.feedback else 0
        assert cost.encode == coefficients + memory - code.n * PARAMETERS
        assert cost.accumulate == wait_for * PARAMETERS
        assert bool(cost.solve) == bool(cost.solve_s) == (scheme.name == "gradient_coding")
        header = len(Header(Op.SLICE, bytes(16), 0).pack())
        # A level for each 1024 values, each chunk's digits in bytes of their own.
        ternary = 4 * -(-d // 1024) + 205 * (d // 1024) + -(-(d % 1024) // 5)
        wire = ternary if scheme.wire == "ternary" else 4 * d
        assert cost.upload == 2 * header + wire + 4  # a byte for each of four parameter tensors


@pytest.mark.slow
def test_the_papers_rows_come_out():
    by_name = {scheme.name: scheme for scheme in SCHEMES}
    fits = {}
    for name in ("lwpd", "gradient_coding", "k_async"):
        scheme = by_name[name]
        cases = [
            Case(scheme, code, wait_for, width, measure(scheme, code, wait_for, width, rounds=1))
            for code, wait_for in sizes(scheme, quick=True)
            if code.n <= 16
            for width in (128, 256)
        ]
        fits[name] = [exponents(cases, scheme.variables, q) for q in (lambda c: c.encode, lambda c: c.upload)]
    assert fits["lwpd"] == ["0", "P t^-1.00"]
    assert fits["gradient_coding"] == ["P n s", "P"]
    assert fits["k_async"] == ["0", "P"]


def test_no_operator_is_left_uncounted_in_silence():
    with pytest.raises(RuntimeError, match="neither counted nor known to be free"), Operations():
        torch.ones(3) * torch.ones(3)
