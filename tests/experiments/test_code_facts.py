"""What is said of a code is what the code does."""

import itertools
import re

import pytest
import torch

from experiments.code_facts import (
    Arrivals,
    layout,
    projective_error,
    recovery,
    size,
    tasks_text,
    tolerance,
    worker_loads,
    workers_of_a_task,
)
from experiments.description import costs, decoding, figures, generator_rows, notable
from lwpd_lightning import Code, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding import decoders
from lwpd_lightning.settings import ExchangeSettings


def loose_frame() -> Code:
    """Unit rows that are no tight frame."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    return Code(rows, data_parts=2, blocks=1, family="by hand")


CODES = {
    "lwpd(8,4,2)": lwpd_code(8, 4, 2),
    "lwpd(6,6,3)": lwpd_code(6, 6, 3),
    "lwpd(4,2,1)": lwpd_code(4, 2, 1),
    "local(8,A=2,B=2)": local_code(8, data_parts=2, blocks=2),
    "uncoded(5)": uncoded(5),
    "sketch(4,B=2)": local_code(4, data_parts=4, blocks=2),
    "cyclic(5,s=2)": gradient_code(5, stragglers=2),
    "no tight frame": loose_frame(),
}
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


@every_code
def test_the_expected_error_is_the_mean_over_all_arrival_sets(code):
    eye, wanted = torch.eye(code.k, dtype=torch.float64), decoders.wanted(code)
    for count in range(1, code.n + 1):
        said = projective_error(code, count)
        if not code.is_tight:
            assert said is None
            continue
        squares = []
        for turn, arrived in itertools.product(code.cycle, itertools.combinations(range(code.n), count)):
            rows = turn.generator[list(arrived)]
            estimate = rows.T @ torch.diag(turn.decoding_weights(arrived)) @ rows
            squares.append([(m @ (estimate - eye)).square().sum() / m.square().sum() for m in (eye, wanted)])
        of_tasks, of_gradient = torch.tensor(squares).mean(dim=0).tolist()
        assert said == pytest.approx(of_tasks, abs=1e-9)
        assert said == pytest.approx(of_gradient, abs=1e-9)


def test_the_expected_error_of_a_fixed_code_is_the_closed_form():
    code = lwpd_code(32, 16, 4)

    assert [projective_error(code, K) for K in range(1, 33)] == pytest.approx(
        [(32 - K) * 15 / (K * 31) for K in range(1, 33)], abs=1e-9
    )


@every_code
def test_the_tolerance_is_the_smallest_number_of_which_any_set_is_decodable(code):
    def any_of(count):
        return all(decoders.decodable(code, arrived) for arrived in itertools.combinations(range(code.n), count))

    enough = next((count for count in range(1, code.n + 1) if any_of(count)), None)

    said = (f"all {enough}" if enough == code.n else f"any {enough} of {code.n}") if enough else None
    assert tolerance(code, recovery(code)) == said


def test_a_sample_is_named_and_never_called_any():
    text = tolerance(lwpd_code(18, 9, 3), recovery(lwpd_code(18, 9, 3), 200))

    any_of, sampled = map(int, re.fullmatch(r"any (\d+) of 18, and each of 200 sampled sets of (\d+)", text).groups())
    assert sampled < any_of
    assert recovery(lwpd_code(18, 9, 3), 200)[any_of - 1].all_tried


def test_a_failing_set_counts_against_all_smaller_numbers():
    shares = [(0.0, 4, 4), (1.0, 3, 6), (0.5, 2, 4), (1.0, 1, 1)]  # two of the 6 pairs fail, and were not sampled
    worth = [Arrivals(count, share, tried, sets, None) for count, (share, tried, sets) in enumerate(shares, start=1)]

    assert tolerance(uncoded(4), worth) == "all 4"


def test_a_code_that_never_decodes_is_said_to():
    code = Code(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), 2, 1, "blind")

    assert tolerance(code, recovery(code)) is None


@every_code
def test_the_layout_has_every_task_of_every_worker(code):
    said = {
        (worker, part, block)
        for group in layout(code)
        for worker in group.workers
        for part, blocks in group.blocks.items()
        for block in blocks
    }

    assert said == {(w, task.data_part, task.block) for w in range(code.n) for task in code.tasks(w)}


def test_tasks_in_words():
    (first, *_), *_ = [layout(lwpd_code(32, 16, 4))]

    assert tasks_text(first, lwpd_code(32, 16, 4)) == "part 0: all blocks"
    assert tasks_text(layout(lwpd_code(32, 16, 4))[4], lwpd_code(32, 16, 4)) == (
        "part 0: block 0; part 1: block 1; part 2: block 2; part 3: block 3"
    )
    assert tasks_text(layout(uncoded(3))[2], uncoded(3)) == "part 2: whole gradient"


@every_code
def test_the_printed_generator_reads_back(code):
    meaning, rows = generator_rows(code)

    magnitude = re.search(r"are ([\d.]+),", meaning)
    for worker, row in enumerate(rows):
        entries = [entry for part in row for entry in (part if magnitude else part.split())]
        signs = {"+": 1.0, "-": -1.0, ".": 0.0}
        read = [signs[e] * float(magnitude[1]) if magnitude else float(e.replace(".", "0", e == ".")) for e in entries]
        torch.testing.assert_close(torch.tensor(read).double(), code.generator[worker], atol=0.005, rtol=0)


@every_code
def test_the_figures_are_the_codes(code):
    said = dict(figures(code))

    assert said["coherence"].startswith(f"{code.coherence:.4g}, projective distance {code.projective_distance:.4g}")
    assert ("not tight" in said["frame bounds"]) is not code.is_tight
    assert f"k={code.k} tasks = {size(code)}" in said["size"]
    columns = (code.generator != 0).sum(dim=0)
    assert workers_of_a_task(code) == (columns.min(), columns.max())
    assert worker_loads(code) == [len(code.parts(worker)) / code.data_parts for worker in range(code.n)]


@pytest.mark.parametrize(("wire_dtype", "share"), [(None, "0.5"), ("bfloat16", "0.25"), ("int8", "0.125")])
def test_the_upload_is_the_wire_formats(wire_dtype, share):
    settings = ExchangeSettings(code=lwpd_code(8, 4, 2), wait_for=6, wire_dtype=wire_dtype)

    assert (
        f"1/2 of the gradient's numbers a codeword; as {wire_dtype or 'float32'} {share}"
        in (dict(costs(settings, recovery(settings.code)))["upload"])
    )


@pytest.mark.parametrize(
    ("decoder", "wait_for", "text"),
    [
        ("projective", 6, "projective, expected squared error 0.143 of the gradient's"),
        ("projective", 8, "projective, exact"),
        ("least_squares", 4, "least_squares, which succeeds on 85.7% of the sets of 4"),
        ("least_squares", 5, "least_squares, which succeeds on all sets of 5"),
    ],
)
def test_what_the_decoder_makes_of_k_arrivals(decoder, wait_for, text):
    settings = ExchangeSettings(code=lwpd_code(8, 4, 2), wait_for=wait_for, decoder=decoder, stale="drop")

    assert decoding(settings, recovery(settings.code)) == text


def test_a_long_profile_keeps_its_ends_its_moves_and_k():
    worth = recovery(lwpd_code(18, 9, 3))

    kept = notable(worth, wait_for=14)

    assert {1, 14, 18} <= {at.count for at in kept}
    assert {at.count for at in worth if 0 < at.share < 1} <= {at.count for at in kept}
    assert len(kept) < len(worth)
