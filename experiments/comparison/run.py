"""One finished run, wherever its figures come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from .series import Curve, Series, Wanted, learning_curve, of_curve

AXES = ("wall", "bytes", "updates")


class _Missing:
    def __repr__(self) -> str:
        return "unset"


MISSING = _Missing()


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        source: its directory, or its W&B path.
        summary: figures of the finished run (`experiments.summary.summarise`).
        config: its resolved configuration.
        read: reads series whose names are wanted; called when a table or a figure needs them.
        parts: sources of the earlier parts of a continued run, whose logs `read` reads too.
        lost: directory of an earlier part whose log is not among those that were read.
        bytes_before: what that and what was before it had sent over all links, NaN where nothing tells.

    Raises:
        ValueError: the summary has no target that is a number.
    """

    source: str
    summary: dict[str, Any]
    config: dict[str, Any]
    read: Callable[[Wanted], Series] = field(repr=False)
    parts: tuple[str, ...] = ()
    lost: str | None = None
    bytes_before: float = 0.0

    def __post_init__(self) -> None:
        target = self.summary.get("target")
        if not isinstance(target, dict) or not {"metric", "value"} <= target.keys():
            raise ValueError("it has no target metric, so it is no run of experiments.train")
        value = target["value"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"its target.value={value} is no number")

    @property
    def scheme(self) -> str:
        """The word that names its method."""
        return str(self.get("scheme"))

    @property
    def metric(self) -> str:
        """Name of the metric that has a target."""
        return str(self.summary["target"]["metric"])

    @property
    def minimised(self) -> bool:
        """Whether a smaller metric is better."""
        return bool(self.summary["target"].get("mode") == "min")

    @property
    def final(self) -> float:
        """The metric of the finished model, NaN where the summary has none."""
        value = self.summary.get(self.metric)
        return float("nan") if value is None else float(value)

    @cached_property
    def curve(self) -> Curve:
        """The metric at every validation."""
        curve = learning_curve(self.read(of_curve(self.metric)), self.metric, self.summary.get("startup_s"))
        curve = replace(curve, bytes=curve.bytes + self.bytes_before)
        return curve if self.timed else replace(curve, wall=np.full(len(curve.wall), float("nan")))

    @property
    def resumed_from(self) -> str | None:
        """Directory of the run that this one continues."""
        origin = self.get("resumed_from")
        return None if origin is MISSING else origin

    @property
    def timed(self) -> bool:
        """Whether its clock runs from the start of its first part: an older checkpoint does not tell the time."""
        return self.resumed_from is None or self.summary.get("resumed_at_s") is not None

    @cached_property
    def arrivals(self) -> Series:
        """Who arrived in each update and how stale; empty where no exchange was monitored."""
        series = self.read(lambda name: name.startswith(("exchange/arrived/", "exchange/staleness/")))
        arrived = [column for name, column in series.items() if name.startswith("exchange/arrived/")]
        if not arrived:
            return {}
        updates = ~np.isnan(arrived[0])
        return {name: column[updates] for name, column in series.items()}

    def refuse_unreadable(self) -> None:
        """Read what tables and figures ask of every run.

        Raises:
            ValueError: its log or its summary holds something else; whoever has more runs leaves this one out.
        """
        try:
            _ = self.final, [self.to_target(axis) for axis in AXES], self.curve, self.arrivals
        except (TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def to_target(self, axis: str) -> float:
        """Seconds, bytes or updates to the target: infinite where it was not reached, NaN where not measured."""
        reached_s = self.summary.get("time_to_target_s")
        if axis == "wall" and not self.timed:
            return float("nan")
        if axis == "wall" and "time_to_target_s" in self.summary:
            return float("inf") if reached_s is None else float(reached_s)
        if self.lost is not None and reached_s is not None and (self.curve.wall > reached_s).all():
            return float("nan")  # reached in the part whose log is lost
        at = self.curve.first_reach(self.summary["target"]["value"], self.minimised)
        if at is None:
            return float("inf") if len(self.curve.value) else float("nan")
        return float(self.curve.spent(axis)[at])

    def get(self, key: str) -> Any:
        """Value at a dotted path in the summary or else in the configuration; MISSING where neither has it.

        What a run says of itself goes first: `code.t` of a scheme without a code is not the one that was configured.

        >>> summary = {"scheme": "ddp", "code": None, "target": {"metric": "val_acc", "value": 0.9}}
        >>> run = Run("here", summary, {"code": {"t": 2}, "data": {"batch_size": 128}}, dict)
        >>> run.get("scheme"), run.get("data.batch_size"), run.get("code.t"), run.get("nothing.there")
        ('ddp', 128, None, unset)
        """
        value = _descend(self.summary, key)
        return _descend(self.config, key) if value is MISSING else value


def _descend(node: Any, key: str) -> Any:
    for part in key.split("."):
        if node is None:
            return None
        if not isinstance(node, dict):
            return MISSING
        # YAML reads the worker in {1: 5.0} as a number.
        node = node.get(part, node.get(int(part), MISSING) if part.isdigit() else MISSING)
        if node is MISSING:
            return MISSING
    return node
