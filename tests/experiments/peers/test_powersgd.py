"""PowerSGD against a plain single-process reference, on real ranks over Gloo."""

import pytest
import torch

from experiments.peers.powersgd import PowerSGD
from tests.experiments.peers.ranks import on_ranks

RANKS = 3
# Two matrices of one shape, a wide and a tall one, a convolution, and what is never compressed.
SHAPES = [(12, 10), (12, 10), (6, 30), (30, 5), (8, 3, 3, 3), (12,), (), (2, 2)]


def gradients(rank: int, update: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + update)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def mean(tensors: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack(of).mean(0) for of in zip(*tensors, strict=True)]


def trained(folder, updates: int, dtype: torch.dtype = torch.float64, **settings):
    """For each rank: the aggregated gradients of every update, the errors at the end, payload bytes of every update."""

    def work(rank: int):
        powersgd = PowerSGD(gradients(0, 0, dtype), **settings)
        outputs, payloads = [], []
        for update in range(updates):
            own = gradients(rank, update, dtype)
            powersgd.aggregate(own)
            outputs.append(own)
            payloads.append(powersgd.payload_bytes)
        return outputs, powersgd.errors, payloads

    return on_ranks(RANKS, work, folder)


def reference(updates: int, rank: int, compressed: list[int], start: dict[int, torch.Tensor]):
    """The authors' algorithm for all ranks in one process, one matrix at a time, every product formed."""
    basis = dict(start)
    errors = [{at: torch.zeros_like(gradients(0, 0)[at]).flatten(1) for at in compressed} for _ in range(RANKS)]
    outputs = []
    for update in range(updates):
        own = [gradients(r, update) for r in range(RANKS)]
        output = mean(own)
        for at in compressed:
            left = torch.linalg.qr(basis[at]).Q
            matrices = [own[r][at].flatten(1) + errors[r][at] for r in range(RANKS)]
            rights = [matrix.T @ left for matrix in matrices]
            matrices = [matrix - left @ right.T for matrix, right in zip(matrices, rights, strict=True)]
            approximation = left @ torch.stack(rights).mean(0).T
            right = torch.linalg.qr(torch.stack(rights).mean(0)).Q
            lefts = [matrix @ right for matrix in matrices]
            for r in range(RANKS):
                errors[r][at] = matrices[r] - lefts[r] @ right.T
            basis[at] = torch.stack(lefts).mean(0)
            output[at] = (approximation + basis[at] @ right.T).view(output[at].shape)
        outputs.append(output)
    return outputs, errors


def test_every_update_is_the_authors(tmp_path):
    compressed = [0, 1, 2, 3, 4]
    flat = torch.empty(2 * 12 * 2 + 6 * 2 + 30 * 2 + 8 * 2, dtype=torch.float64)
    flat.normal_(generator=torch.Generator().manual_seed(0))
    rows = [12, 12, 6, 30, 8]
    starts = dict(zip(compressed, (part.view(-1, 2) for part in flat.split([2 * r for r in rows])), strict=True))

    ranks = trained(tmp_path, updates=6, rank=2, min_compression_rate=1.0)
    outputs, errors = reference(6, 2, compressed, starts)

    for rank, (own, own_errors, _) in enumerate(ranks):
        assert sorted(own_errors) == compressed
        for update in range(6):
            torch.testing.assert_close(own[update], outputs[update], rtol=0, atol=1e-12)
        for at in compressed:
            torch.testing.assert_close(own_errors[at], errors[rank][at], rtol=0, atol=1e-12)


def test_all_ranks_get_the_same_bits(tmp_path):
    first, *others = trained(tmp_path, updates=4, dtype=torch.float32, rank=2, min_compression_rate=1.0)

    for other in others:
        for ours, theirs in zip(first[0], other[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_left_out_comes_later(tmp_path, rank):
    updates = 7
    ranks = trained(tmp_path, updates, rank=rank, min_compression_rate=1.0)

    wanted = [sum(of) for of in zip(*(mean([gradients(r, u) for r in range(RANKS)]) for u in range(updates)))]  # noqa: B905
    for at, total in enumerate(wanted):
        given = sum(ranks[0][0][update][at] for update in range(updates))
        if at in ranks[0][1]:
            left_out = torch.stack([errors[at] for _, errors, _ in ranks]).mean(0).view(total.shape)
            assert left_out.norm() > 0.01 * total.norm()
            given = given + left_out
        torch.testing.assert_close(given, total, rtol=0, atol=1e-12)


def test_full_rank_is_the_average(tmp_path):
    for own, _, _ in trained(tmp_path, updates=2, rank=99, min_compression_rate=0.0):
        for update in range(2):
            expected = mean([gradients(r, update) for r in range(RANKS)])
            torch.testing.assert_close(own[update], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        # 12x10 twice, 6x30, 30x5 and 8x27 at rank 1; 12 + 1 + 4 numbers whole.
        ({"rank": 1, "min_compression_rate": 2.0}, 2 * 22 + 36 + 35 + 35 + 17),
        ({"rank": 2, "min_compression_rate": 2.0}, 2 * (2 * 22 + 36 + 35 + 35) + 17),
        # At rank 3 only 8 x 27 shrinks to less than half.
        ({"rank": 3, "min_compression_rate": 2.0}, 3 * 35 + 2 * 120 + 180 + 150 + 17),
    ],
)
def test_bytes_are_those_of_the_factors(tmp_path, settings, numbers):
    for _, _, payloads in trained(tmp_path, updates=2, dtype=torch.float32, **settings):
        assert payloads == [4 * numbers] * 2


def test_first_updates_may_be_whole(tmp_path):
    whole = sum(torch.Size(shape).numel() for shape in SHAPES)
    ranks = trained(tmp_path, updates=3, rank=1, uncompressed_updates=2)

    expected = [mean([gradients(r, update) for r in range(RANKS)]) for update in range(3)]
    for own, _, payloads in ranks:
        assert payloads == [8 * whole, 8 * whole, payloads[2]]
        assert payloads[2] < 8 * whole / 2
        torch.testing.assert_close(own[:2], expected[:2], rtol=0, atol=1e-12)
        assert not torch.allclose(own[2][0], expected[2][0])
