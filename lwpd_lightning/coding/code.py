"""A gradient code: which tasks each worker mixes into its codeword, and the figures that describe it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lwpd_lightning.coding import decoders
from lwpd_lightning.coding.groups import Groups, groups

_BATCH = 512  # arrival sets solved together in recovery_profile: bounds its memory to a few MB


class Task(NamedTuple):
    """One gradient that a worker mixes in: block ``block`` on data part ``data_part``, times ``coefficient``."""

    data_part: int
    block: int
    coefficient: float


class _ByConstruction:
    """A base that is no dataclass: LightningCLI has a code made by functions such as `lwpd_code`, not of its fields."""


@dataclass(frozen=True, eq=False, repr=False)
class Code(_ByConstruction):
    """A linear code over k = data_parts * blocks gradient tasks for n workers.

    Task (a, b) is the gradient of the mean loss on data part a with respect to block b, a vector of d numbers; its
    coordinate is ``a * blocks + b``. Worker i sends the codeword ``sum_j generator[i, j] * task_j``: d numbers,
    whatever the weight of its row (Soto et al., ICML 2022).

    Args:
        generator: (n, k) float64, rows of unit norm.
        data_parts: A, the number of parts that a batch is cut into.
        blocks: B, the number of blocks that the parameters are cut into.
        family: the name of the construction, for people: "lwpd", "local" or any other.
        recovery_threshold: the construction guarantees the exact gradient from any so many codewords (decoder="exact");
            None: it guarantees nothing, or none was claimed.

    Raises:
        ValueError: where the generator is not a float64 matrix of data_parts * blocks columns and unit-norm rows, or
            recovery_threshold is not in 1..n.

    >>> from lwpd_lightning.coding.families import lwpd_code
    >>> code = lwpd_code(n=8, k=4, t=2)
    >>> code
    Code(family='lwpd', n=8, k=4, t=2, data_parts=2, blocks=2)
    >>> [(part, block, round(c, 3)) for part, block, c in code.tasks(5)]
    [(0, 0, 0.707), (1, 1, -0.707)]
    """

    generator: Tensor
    data_parts: int
    blocks: int
    family: str
    recovery_threshold: int | None = None

    def __post_init__(self) -> None:
        c = self.generator
        if c.ndim != 2 or c.shape[0] == 0 or c.dtype != torch.float64:
            raise ValueError(f"generator is {c.dtype} of shape {tuple(c.shape)}: give a float64 matrix (n, k).")
        if self.data_parts < 1 or self.blocks < 1 or c.shape[1] != self.data_parts * self.blocks:
            raise ValueError(
                f"generator has k={c.shape[1]} columns for data_parts={self.data_parts} and blocks={self.blocks}: "
                f"k must be data_parts * blocks."
            )
        norms = torch.linalg.vector_norm(c, dim=1)
        wrong = torch.nonzero(~((norms - 1).abs() < 1e-9)).flatten().tolist()
        if wrong:
            raise ValueError(f"generator row {wrong[0]} has norm {norms[wrong[0]]:.6g}: scale every row to norm 1.")
        if self.recovery_threshold is not None and not 1 <= self.recovery_threshold <= self.n:
            raise ValueError(
                f"recovery_threshold={self.recovery_threshold} is outside 1..{self.n}, the code's workers."
            )

    def __repr__(self) -> str:
        return (
            f"Code(family={self.family!r}, n={self.n}, k={self.k}, t={self.t}, "
            f"data_parts={self.data_parts}, blocks={self.blocks})"
        )

    @property
    def n(self) -> int:
        """Number of workers."""
        return int(self.generator.shape[0])

    @property
    def k(self) -> int:
        """Number of tasks: data_parts * blocks."""
        return int(self.generator.shape[1])

    @cached_property
    def t(self) -> int:
        """The largest row weight: the most tasks that one worker mixes."""
        return int(torch.count_nonzero(self.generator, dim=1).max())

    @cached_property
    def cycle(self) -> tuple[Code, ...]:
        """The codes that take turns from version to version: this one alone where the rows are fixed."""
        return (self,)

    @property
    def direction(self) -> Tensor | None:
        """What all workers' codewords show of their gradient's blocks, (B,) float64, where that is one and the same.

        None where rows differ in more than their data part. With one, the sum of codewords is all that can be decoded.
        """
        return None

    def at(self, version: int) -> Code:
        """The code by which codewords of a version are encoded and decoded: itself where the rows are fixed."""
        return self

    def tasks(self, worker: int) -> list[Task]:
        """The tasks of one worker, in coordinate order, zero coefficients left out."""
        row = self.generator[worker]
        coordinates = row.nonzero().flatten()
        told = zip(coordinates.tolist(), row[coordinates].tolist(), strict=True)
        return [Task(j // self.blocks, j % self.blocks, c) for j, c in told]

    def parts(self, worker: int) -> tuple[int, ...]:
        """The data parts on which this worker must compute gradients, ascending."""
        return self._parts[worker]

    @cached_property
    def _parts(self) -> list[tuple[int, ...]]:
        return [tuple(sorted({task.data_part for task in self.tasks(worker)})) for worker in range(self.n)]

    def coefficients(self, worker: int) -> Tensor:
        """The worker's row as a (data_parts, blocks) float64 view: row a is what to encode of part a's gradient."""
        return self.generator[worker].view(self.data_parts, self.blocks)

    @cached_property
    def groups(self) -> list[Groups]:
        """Its workers by whom they share tasks with, directly or by way of others; those of one shape together."""
        return groups([self.generator])

    @cached_property
    def coherence(self) -> float:
        """Largest ``|<c_i, c_j>|`` of two different workers in one version; 0 for a single worker, 1 for equal rows."""
        return max(float((c @ c.T).abs().fill_diagonal_(0).max()) for c in self._generators)

    @property
    def projective_distance(self) -> float:
        """``sqrt(1 - coherence^2)``: the smallest sine of the angle between two codewords' lines (Soto et al.)."""
        return math.sqrt(max(0.0, 1 - self.coherence**2))

    @cached_property
    def frame_bounds(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of ``C^T C``, averaged over the `cycle`; equal (to n/k) for a tight frame."""
        of_all = groups(self._generators) if len(self.cycle) > 1 else self.groups
        frames = [group.matrix.mT @ group.matrix / len(self.cycle) for group in of_all]
        eigenvalues = torch.cat([torch.linalg.eigvalsh(frame).flatten() for frame in frames])
        lowest = float(eigenvalues.min()) if len(eigenvalues) == self.k else 0.0  # a task that no row has
        return lowest, float(eigenvalues.max())

    @property
    def is_tight(self) -> bool:
        """Whether ``C^T C = (n/k) I`` on average over the `cycle`, which the projective decoder needs.

        All codewords of a cycle's versions together then give the exact gradient without a solve.
        """
        lo, hi = self.frame_bounds
        return hi - lo < 1e-9 * hi

    @property
    def _generators(self) -> list[Tensor]:
        return [code.generator for code in self.cycle]

    def recovery_profile(self, max_sets: int = 2000, seed: int = 0) -> dict[int, float]:
        """For each K in 1..n the share of K-arrival sets of one version from which every block's gradient is recovered.

        Exactly: the wanted gradient of every block lies in the span of the arrived rows (`decoders.decodable`), which
        asks less than all k tasks. All comb(n, K) sets are tried where they are at most ``max_sets``; otherwise the
        share is an estimate from that many seeded random sets.

        >>> from lwpd_lightning.coding.families import uncoded
        >>> uncoded(3).recovery_profile()
        {1: 0.0, 2: 0.0, 3: 1.0}
        """
        if max_sets < 1:
            raise ValueError(f"max_sets={max_sets}: use at least 1.")
        random = torch.Generator().manual_seed(seed)
        profile = {}
        for count in range(1, self.n + 1):
            total = min(math.comb(self.n, count), max_sets)
            if total == math.comb(self.n, count):
                sets = torch.tensor(list(itertools.combinations(range(self.n), count)))
            else:
                sets = torch.rand(total, self.n, generator=random).argsort(dim=1)[:, :count]
            exact = sum(int(decoders.spans_wanted(self, batch).sum()) for batch in torch.split(sets, _BATCH))
            profile[count] = exact / total
        return profile

    def decoding_weights(
        self, arrived: Sequence[int], decoder: str = "projective", inclusion: Sequence[float] | None = None
    ) -> Tensor | None:
        """How much each arrived codeword counts, in the order of ``arrived``.

        Args:
            arrived: distinct worker ids.
            decoder: "projective", "least_squares" or "exact".
            inclusion: projective only, see `decoders.projective_weights`.

        Returns:
            projective: (len(arrived),) float64, one scalar w_i an arrival: codeword i enters block b with
            ``w_i * block_coefficients(code, i)[b]``.
            least_squares, exact: (len(arrived), blocks) float64, one weight an arrival and block: one scalar an arrival
            cannot be exact for more than one block. None where the arrived rows do not span the wanted gradient.

        Raises:
            ValueError: for an unknown decoder, for repeated or unknown workers, for "projective" with a code that is
                no tight frame, and for "exact" with one that has no recovery threshold.

        >>> from lwpd_lightning.coding.families import lwpd_code
        >>> lwpd_code(8, 4, 2).decoding_weights([0, 3, 5, 6])
        tensor([1., 1., 1., 1.], dtype=torch.float64)
        """
        decoders.refuse_decoder(self, decoder)
        if decoder == "projective":
            return decoders.projective_weights(self, arrived, inclusion)
        if inclusion is not None:
            raise ValueError(f"inclusion is given with decoder={decoder!r}: leave it out or use 'projective'.")
        if not decoders.decodable(self, arrived):
            return None
        return decoders.least_squares_coefficients(self, arrived)
