"""What an update is made of, and what is told of it: contributions go in, a record comes out, workers are lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lwpd_lightning.exchange.rule import Arrival


class WorkerFailed(RuntimeError):
    """An exception in a worker, with its traceback."""


class TooFewWorkers(RuntimeError):
    """More workers died than the run may lose."""


@dataclass(frozen=True)
class Failure:
    """A worker that became an erasure."""

    worker: int
    update: int
    reason: str


@dataclass(frozen=True)
class Contribution:
    """What a worker computed for one version: its codeword and what rank 0 logs of it.

    Attributes:
        codeword: (d,) tensor.
        touched: for each trainable parameter, whether it got a gradient.
        loss: mean loss over the worker's data parts.
        samples: samples in one data part.
        compute_s: seconds from receiving the version to the finished codeword.
        statistics: packed normalisation statistics (`StateLayout.statistics`).
    """

    codeword: Tensor
    touched: Sequence[bool]
    loss: float
    samples: int
    compute_s: float
    statistics: Tensor


@dataclass(frozen=True)
class Update:
    """One closed update, as it is logged. Times in seconds, traffic in bytes over all links.

    Attributes:
        version: the version that it steps from.
        epoch: epoch of its batch.
        batch_index: index of its batch in the epoch.
        arrivals: the codewords that counted.
        loss: mean loss over the contributors.
        samples: samples in the distinct data parts that the contributors computed.
        wait_s: from the end of the coordinator's own computing to the closing.
        compute_s: mean computing time of the contributors.
        bytes_up: received since the last update closed.
        bytes_down: sent since then.
        uploads: codewords received since then, counted or not.
        decoded_share: share of the k task directions that the arrivals span.
        dropped: codewords that came too stale to count.
        live: workers that live.
        inclusion: for each worker, the share of updates so far in which it counted.
    """

    version: int
    epoch: int
    batch_index: int
    arrivals: list[Arrival]
    loss: float
    samples: int
    wait_s: float
    compute_s: float
    bytes_up: int
    bytes_down: int
    uploads: int
    decoded_share: float
    dropped: int
    live: int
    inclusion: list[float]
