"""The clock of a fit: wall time at each validation, and time to a target metric."""

from __future__ import annotations

import operator
import time
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from .given import refuse_target


class NotLogged(ValueError):
    """A metric that the model does not log, which its first validation shows."""


class TargetTimer(Callback):
    """Seconds from the start of `fit`, workers' start-up included, to the first validation that reaches a target.

    At the end of every validation the seconds so far are logged as `val_wall_s`, with the number of updates made as the
    step: a metric against wall time is comparable between schemes, also those without an exchange to be monitored.
    A fit that goes on from a checkpoint goes on with the checkpoint's clock.

    Args:
        metric: name of a metric that the model logs in validation.
        value: the target, in the metric's unit.
        mode: "max" where the metric has to be at least `value`, "min" where at most.

    Attributes:
        reached_s: the time in seconds, None while the target has not been reached.
        best: the best value of the metric so far, None before the first validation.

    Raises:
        ValueError: `value` is no number, or `mode` neither "max" nor "min".
        NotLogged: at validation, the model does not log `metric`.
    """

    on_workers = False

    def __init__(self, metric: str, value: float, mode: Literal["min", "max"]) -> None:
        refuse_target(value, mode)
        self.metric = metric
        self.value = value
        self.mode = mode
        self.reached_s: float | None = None
        self.best: float | None = None
        self._started = 0.0
        self._before: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        # A strategy that starts its ranks before this hook says when it did.
        self._started = getattr(trainer.strategy, "started_at", time.perf_counter())
        # A checkpoint is read before this hook, and speaks for this fit only.
        before, self._before = self._before, {}
        self._started -= before.get("elapsed_s", 0.0)
        same_target = before.get("target") == [self.metric, self.value, self.mode]
        self.reached_s = before["reached_s"] if same_target else None
        self.best = before["best"] if same_target else None

    def state_dict(self) -> dict[str, Any]:
        """What the clock shows, for the fit that goes on from a checkpoint."""
        return {
            "elapsed_s": time.perf_counter() - self._started,
            "target": [self.metric, self.value, self.mode],
            "reached_s": self.reached_s,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's clock in the fit that begins next."""
        self._before = dict(state_dict)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock when the metric has reached the target for the first time."""
        # Validation outside of fit judges the finished model; the clock has no say in it.
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise NotLogged(f"target.metric={self.metric} is not logged by the model: use one of {logged}.")
        elapsed_s = time.perf_counter() - self._started
        for logger in trainer.loggers:
            logger.log_metrics({"val_wall_s": elapsed_s}, step=trainer.global_step)
        now = float(trainer.callback_metrics[self.metric])
        at_least_as_good = operator.ge if self.mode == "max" else operator.le
        if self.best is None or at_least_as_good(now, self.best):
            self.best = now
        if self.reached_s is None and at_least_as_good(now, self.value):
            self.reached_s = elapsed_s
