"""What training_step logs on ranks that keep no log: combined over those that count, where DDP would combine it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lwpd_lightning.exchange.update import LOG_OPTIONS, Logged

if TYPE_CHECKING:
    import lightning.pytorch as pl

_REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "min": min,
    "max": max,
}
_TORCH = {
    torch.mean: "mean",
    torch.sum: "sum",
    torch.min: "min",
    torch.max: "max",
    torch.amin: "min",
    torch.amax: "max",
}
_VARIES = ("batch_size",)  # from step to step


class StepLog:
    """Stands in for ``LightningModule.log`` while a training_step runs.

    Values that are logged with ``sync_dist=True`` are kept for `combined`; so are all, where rank 0 computes nothing
    and would have none. A torchmetrics object stays on its rank, and is reset when an epoch ends.

    Args:
        module: whose log it is.
        everything: keep every value.
        keep: hand other values on to the module's own log: on rank 0.
    """

    def __init__(self, module: pl.LightningModule, *, everything: bool, keep: bool) -> None:
        self._module, self._everything, self._keep = module, everything, keep
        self._logged: list[dict[str, Logged]] = []
        self._metrics: list[Any] = []
        self._explained: set[str] = set()
        self._how: dict[str, Logged] = {}  # each name was logged first

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch what is logged inside."""
        own = self._module.log
        self._module.log = lambda name, value, **options: self._log(own, name, value, options)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._module.log

    def listen(self) -> None:
        """Catch what is logged from now on, for as long as the process lives."""
        self._module.log = lambda name, value, **options: self._log(None, name, value, options)  # type: ignore[method-assign]

    def take(self) -> dict[str, Logged]:
        """What was logged since the last time, over the data parts."""
        logged, self._logged = self._logged, []
        return combined(logged)

    def relog(self, contributions: Sequence[Mapping[str, Logged]]) -> None:
        """Log what contributors' steps logged, combined, as training_step would have.

        Lightning refuses a name that is logged in another way than before: the first way is that of all.
        """
        module = self._module
        hook, module._current_fx_name = module._current_fx_name, "training_step"
        for name, entry in combined(contributions).items():
            first = self._how.setdefault(name, entry)
            options = {**first.options, **{key: entry.options[key] for key in _VARIES if key in entry.options}}
            module.log(name, torch.tensor(entry.value, dtype=_dtype(module)), reduce_fx=first.reduce_fx, **options)
        module._current_fx_name = hook

    def end_epoch(self) -> None:
        """Reset the metrics, as Lightning does on a rank that logs; otherwise their states would grow for ever."""
        for metric in self._metrics:
            metric.reset()
        self._metrics = []

    def _log(self, own: Callable[..., None] | None, name: str, value: Any, options: dict[str, Any]) -> None:
        reduce_fx = options.get("reduce_fx", "mean")
        reduce_fx = reduce_fx if isinstance(reduce_fx, str) else _TORCH.get(reduce_fx, "")
        in_step = self._module._current_fx_name == "training_step"
        if hasattr(value, "reset") and hasattr(value, "compute"):
            if not any(metric is value for metric in self._metrics):
                self._metrics.append(value)
            if self._keep and in_step:
                self._explain(type(value).__name__)
        elif in_step and reduce_fx in _REDUCTIONS and (self._everything or options.get("sync_dist")):
            told = {option: options[option] for option in LOG_OPTIONS if option in options}
            self._logged.append({name: Logged(float(value), reduce_fx, told)})
            return
        if own is not None and self._keep:
            own(name, value, **options)

    def _explain(self, metric: str) -> None:
        if metric not in self._explained:
            self._explained.add(metric)
            rank_zero_warn(
                f"self.log of a {metric} in training_step shows rank 0's data part alone: its state stays on its rank. "
                "Values that are logged with sync_dist=True are combined over all workers that count."
            )


def combined(contributions: Sequence[Mapping[str, Logged]]) -> dict[str, Logged]:
    """Each value over those who logged it, as its ``reduce_fx`` says."""
    names = {name: None for logged in contributions for name in logged}
    result = {}
    for name in names:
        those = [logged[name] for logged in contributions if name in logged]
        value = _REDUCTIONS[those[0].reduce_fx]([logged.value for logged in those])
        result[name] = Logged(value, those[0].reduce_fx, those[0].options)
    return result


def _dtype(module: pl.LightningModule) -> torch.dtype:
    return next(parameter.dtype for parameter in module.parameters())
