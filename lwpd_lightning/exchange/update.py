"""What an update is made of, and what is told of it: contributions go in, a record comes out, workers are lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.decoders import spanned_share
from lwpd_lightning.links.message import text
from lwpd_lightning.rule.arrivals import Arrival


class WorkerFailed(RuntimeError):
    """An exception in a worker, with its traceback."""


class TooFewWorkers(RuntimeError):
    """More workers died than the run may lose."""


class NotFinite(RuntimeError):
    """An update of which too few codewords are finite, and no larger than `max_codeword_norm` allows."""


@dataclass(frozen=True)
class Failure:
    """A worker that became an erasure."""

    worker: int
    update: int
    reason: str


REDUCTIONS = ("mean", "sum", "min", "max")
LOG_OPTIONS = ("prog_bar", "logger", "on_step", "on_epoch", "batch_size")
_LARGEST = 1 << 53
# Lightning's own, for one of several loaders.
_RESERVED = "/dataloader_idx_"


@dataclass(frozen=True)
class Logged:
    """One value that a training_step logged, and how.

    Attributes:
        value: the number.
        reduce_fx: of `REDUCTIONS`, over workers and over steps.
        options: what else `LightningModule.log` was told, of `LOG_OPTIONS`.
    """

    value: float
    reduce_fx: str
    options: dict[str, Any]


def to_json(logged: Mapping[str, Logged]) -> str:
    """Logged values as they travel; nothing where there are none."""
    return json.dumps({name: asdict(entry) for name, entry in logged.items()}) if logged else ""


def from_json(told: str) -> dict[str, Logged]:
    """What `to_json` made; raises ValueError for anything else, such as what rank 0 could not log."""
    try:
        entries = json.loads(told) if told else {}
        return {name: _entry(name, **entry) for name, entry in entries.items()}
    except (AttributeError, json.JSONDecodeError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"no logged values: {error}") from error


def _entry(name: str, value: object, reduce_fx: object, options: object) -> Logged:
    said = bool(name) and name.isprintable() and _RESERVED not in name  # so that a logger can write it
    if not said or not isinstance(value, int | float) or reduce_fx not in REDUCTIONS:
        raise ValueError(f"no logged value: {name[:60]!r}")
    if not isinstance(options, dict) or not all(option in LOG_OPTIONS for option in options):
        raise ValueError(f"no way to log {name[:60]!r}")
    for chosen in options.values():
        if not (chosen is None or (isinstance(chosen, int) and 0 <= chosen < _LARGEST)):
            raise ValueError(f"no way to log {name[:60]!r}")
    return Logged(float(value), str(reduce_fx), options)


@dataclass(frozen=True)
class Contribution:
    """What rank 0 hears of a codeword before it decides whether it counts.

    Attributes:
        version: that it was computed at.
        touched: for each trainable parameter, whether it got a gradient.
        loss: mean loss over the worker's data parts.
        samples: samples in one data part.
        compute_s: seconds from receiving the version to the finished codeword.
        statistics: packed normalisation statistics (`StateLayout.statistics`).
        logged: what the training step logged for all.
        finite: whether the codeword holds nothing but numbers, or may hold infinities (16-mixed).
        norm: the codeword's Euclidean norm; None: nobody asked for it, or it holds infinities that it may hold.
    """

    version: int
    touched: Sequence[bool]
    loss: float
    samples: int
    compute_s: float
    statistics: Tensor
    logged: Mapping[str, Logged] = field(default_factory=dict)
    finite: bool = True
    norm: float | None = None

    @property
    def told(self) -> Tensor:
        """What a worker tells beside its header and statistics: a byte for each flag, and the logged values."""
        touched = torch.tensor(self.touched, dtype=torch.uint8)
        return torch.cat([touched, text(to_json(self.logged))]) if self.logged else touched


@dataclass(frozen=True)
class Step:
    """One optimizer step, as every rank can make it by itself.

    Attributes:
        decision: number of the decision that its gradient was made by.
        settings: the optimizer's parameter groups without their parameters: learning rate and the like.
    """

    decision: int
    settings: list[dict[str, object]]


class How(Enum):
    """How a version is published."""

    FIRST = "of its exchange: workers are there"
    AHEAD = "before the coordinator's own step: workers make it too"
    AGAIN = "with another batch or other attributes than was published ahead"
    WHOLE = "after a change of the model that no step makes: workers need the whole state"

    @property
    def voids_older(self) -> bool:
        """Whether nothing may count that was computed on older versions."""
        return self in (How.AGAIN, How.WHOLE)


@dataclass(frozen=True)
class Update:
    """One closed update, as it is logged. Times in seconds, traffic in bytes over all links.

    Attributes:
        version: the version that it steps from.
        epoch: epoch of its batch.
        batch_index: index of its batch in the epoch.
        arrivals: the codewords that counted.
        wait_for: K, how many codewords were waited for.
        loss: mean loss over the contributors.
        samples: samples in the distinct data parts that the contributors computed.
        wait_s: from the end of the coordinator's own computing to the closing.
        compute_s: mean computing time of the contributors.
        bytes_up: of codewords on their way to those who add them up, and of what is told beside them.
        bytes_down: of decoded gradients on their way to all ranks, and of what rank 0 tells them beside.
        uploads: codewords that travelled: one less than counted, since whoever adds up has its own.
        code: whose rows arrived.
        dropped: codewords that were computed and came too stale to count.
        refused: workers whose codewords did not count because they hold what is no finite number, or are too large.
        resyncs: workers that took over rank 0's state because they could not step as it did.
        live: workers that live.
        inclusion: for each worker, the share of updates so far in which it counted.
        logged: what each contributor's training step logged for all.
    """

    version: int
    epoch: int
    batch_index: int
    arrivals: list[Arrival]
    wait_for: int
    loss: float
    samples: int
    wait_s: float
    compute_s: float
    bytes_up: int
    bytes_down: int
    uploads: int
    code: Code
    dropped: int
    resyncs: int
    live: int
    inclusion: list[float]
    logged: list[Mapping[str, Logged]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    @property
    def decoded_share(self) -> float:
        """Share of the k task directions that the arrivals span; computed when it is read."""
        return spanned_share(self.code, frozenset(arrival.worker for arrival in self.arrivals))
