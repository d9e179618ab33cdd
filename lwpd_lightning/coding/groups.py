"""Workers of a code who share no task with others: what is asked of a code is asked of each such group by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """The g groups of one shape: r rows of a matrix that are zero but in c columns, which no other row has.

    Attributes:
        rows: (g, r) int64, ascending in each group.
        columns: (g, c) int64, likewise.
        matrix: (g, r, c) float64, what stands there.
    """

    rows: Tensor
    columns: Tensor
    matrix: Tensor

    def split(self, chosen: Tensor) -> Iterator[Split]:
        """The groups by how many of their rows are chosen: (rows of the whole matrix,) bool."""
        mine = chosen[self.rows]
        counts, order = mine.sum(dim=1), torch.argsort(mine.int(), dim=1, descending=True, stable=True)
        for count in sorted(set(counts.tolist())):
            those = torch.nonzero(counts == count).flatten()
            matrix = self.matrix if len(those) == len(counts) else self.matrix[those]
            its = order[those]
            rows = self.rows[those].gather(1, its)[:, :count]
            yield Split(rows, self.columns[those], matrix, chosen=its[:, :count], others=its[:, count:])


@dataclass(frozen=True)
class Split:
    """Groups with equally many chosen rows.

    Attributes:
        rows: (g, m) int64, the chosen ones, ascending in each group.
        columns: (g, c) int64.
        matrix: (g, r, c) float64.
        chosen: (g, m) int64, where the chosen rows stand in ``matrix``.
        others: (g, r - m) int64, where the others do.
    """

    rows: Tensor
    columns: Tensor
    matrix: Tensor
    chosen: Tensor
    others: Tensor


def rows_of(matrix: Tensor, places: Tensor) -> Tensor:
    """Rows of each of several matrices: (g, r, c), (g, m) -> (g, m, c)."""
    return matrix.gather(1, places[:, :, None].expand(-1, -1, matrix.shape[2]))


def groups(generators: Sequence[Tensor]) -> list[Groups]:
    """The groups of the rows of (n, k) matrices, one below the other; columns of zeros alone are in none.

    >>> identity = torch.eye(3, dtype=torch.float64)
    >>> [group.rows.tolist() for group in groups([identity, identity])]
    [[[0, 3], [1, 4], [2, 5]]]
    """
    n, k = generators[0].shape
    places = [generator.nonzero() for generator in generators]
    values = torch.cat([g[p[:, 0], p[:, 1]] for g, p in zip(generators, places, strict=True)])
    row = np.concatenate([p[:, 0].numpy() + i * n for i, p in enumerate(places)])
    column = np.concatenate([p[:, 1].numpy() for p in places])

    label = _components(row, column, k)
    used = np.unique(column)
    names, group_of_column = np.unique(label[used], return_inverse=True)
    group_of_row = np.empty(n * len(generators), dtype=np.int64)
    group_of_row[row] = np.searchsorted(names, label[column])
    rows, row_place = _members(group_of_row, len(names))
    columns, column_place = _members(group_of_column, len(names))
    place_of_column = np.empty(k, dtype=np.int64)
    place_of_column[used] = column_place

    shapes = np.stack([np.bincount(group_of_row), np.bincount(group_of_column)], axis=1)
    of_entry, found = group_of_row[row], []
    for shape in np.unique(shapes, axis=0):
        those = np.flatnonzero((shapes == shape).all(axis=1))
        slot = np.full(len(names), -1)
        slot[those] = np.arange(len(those))
        its = np.flatnonzero(slot[of_entry] >= 0)
        matrix = torch.zeros(len(those), *shape.tolist(), dtype=torch.float64)
        matrix[slot[of_entry[its]], row_place[row[its]], place_of_column[column[its]]] = values[its]
        its_rows = torch.from_numpy(np.stack([rows[group] for group in those]))
        its_columns = torch.from_numpy(np.stack([used[columns[group]] for group in those]))
        found.append(Groups(its_rows, its_columns, matrix))
    return found


def _components(row: Integers, column: Integers, k: int) -> Integers:
    """For each of k columns the lowest that it is connected to by entries at (row, column)."""
    label = np.arange(k)
    while True:
        lowest = np.full(row.max() + 1, k)
        np.minimum.at(lowest, row, label[column])
        lower = label.copy()
        np.minimum.at(lower, column, lowest[row])
        lower = lower[lower]  # a label is a column of the same component, whose own may be lower still: chains halve
        if (lower == label).all():
            return label
        label = lower


def _members(group: Integers, count: int) -> tuple[list[Integers], Integers]:
    """Who is in each of ``count`` groups, ascending, and at which place everybody is in theirs."""
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=count))[:-1])
    place = np.empty(len(group), dtype=np.int64)
    place[np.concatenate(members)] = np.concatenate([np.arange(len(its)) for its in members])
    return members, place
