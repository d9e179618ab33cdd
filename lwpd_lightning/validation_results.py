"""What a share of validation came to, as it travels, and how rank 0 adds it to its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lwpd_lightning.steering import attributes, is_metric, same

if TYPE_CHECKING:
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection

ALONE = "use validation='rank_zero'"
_OPTIONS = ("name", "prog_bar", "logger", "enable_graph", "add_dataloader_idx")
_ADDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": torch.add,  # of sums, which are divided by samples afterwards
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
}
# As torchmetrics calls the functions by which DDP's ranks are reduced.
_STATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dim_zero_sum": torch.add,
    "dim_zero_min": torch.minimum,
    "dim_zero_max": torch.maximum,
    "dim_zero_cat": lambda one, other: torch.cat([one, other]),
}


def taken(results: _ResultCollection, states: Mapping[str, object]) -> dict[str, object]:
    """Logged values and the states of metrics, in plain containers and tensors.

    Raises:
        RuntimeError: for a value that is logged at each step, of which rank 0 would show its own alone.
    """
    logged: dict[str, object] = {}
    for key, entry in results.items():
        if entry.has_reset:
            continue
        if entry.meta.on_step:
            raise RuntimeError(
                f"self.log({entry.meta.name!r}, on_step=True) in validation_step would show rank 0's batches alone "
                f"with validation='shared': log it with on_step=False, or {ALONE}."
            )
        if entry.is_tensor:
            logged[key] = {
                "value": entry.value,
                "samples": getattr(entry, "cumulated_batch_size", 0),
                "reduce_fx": entry.meta.reduce_fx.__name__.removeprefix("a"),  # amin, amax
                "options": {option: getattr(entry.meta, option) for option in _OPTIONS},
            }
    return {"logged": logged, "states": states}


def merge(results: _ResultCollection, module: nn.Module, shares: Sequence[Mapping[str, Any]]) -> None:
    """Add what shares came to, in their order, to what this rank's own did."""
    metrics = dict(_metrics(module))
    for share in shares:
        for key, told in share["logged"].items():
            _merge_value(results, key, told)
        for path, states in share["states"].items():
            _merge_states(metrics[path], path, states)
    for entry in results.values():
        entry._computed = None


def _merge_value(results: _ResultCollection, key: str, told: Mapping[str, Any]) -> None:
    value, how = told["value"], told["reduce_fx"]
    if key not in results or results[key].has_reset:  # this rank's batches have not led to it
        empty = torch.zeros_like(value) if how in ("mean", "sum") else value
        options = dict(told["options"])
        results.log("validation_step", options.pop("name"), empty, reduce_fx=how, batch_size=0, **options)
    entry = results[key]
    entry.value = _ADDED[how](entry.value, value)
    if how == "mean":
        entry.cumulated_batch_size = entry.cumulated_batch_size + told["samples"]


def _merge_states(metric: Metric, path: str, states: Mapping[str, Any]) -> None:
    for name, theirs in states.items():
        own, reduction = getattr(metric, name), metric._reductions[name]
        if isinstance(own, list):
            own.extend(theirs)
            continue
        how = getattr(reduction, "__name__", "")
        if how not in _STATES:
            raise RuntimeError(
                f"the state {name!r} of {type(metric).__name__} {path} has no reduction that adds up over ranks (sum, "
                f"min, max, cat): {ALONE}."
            )
        setattr(metric, name, _STATES[how](own, theirs))
    metric._update_count = max(metric._update_count, 1)
    metric._computed = None


@contextmanager
def metric_states(module: nn.Module) -> Iterator[Callable[[], dict[str, object]]]:
    """Let the module's metrics begin anew, and put them back afterwards; yields what tells of those that were used."""
    metrics = dict(_metrics(module))
    before = {path: (copy.deepcopy(_state(m)), m._update_count, m._computed) for path, m in metrics.items()}
    for metric in metrics.values():
        metric.reset()
    try:
        yield lambda: {path: _state(metric) for path, metric in metrics.items() if metric._update_count}
    finally:
        for path, metric in metrics.items():
            state, metric._update_count, metric._computed = before[path]
            for name, value in state.items():
                setattr(metric, name, value)


def own_states(module: nn.Module) -> dict[str, Any]:
    """What validation_step might leave behind in a module, metrics aside: settings, records, buffers."""
    kept: dict[tuple[str, str], Any] = copy.deepcopy(attributes(module))
    for path, owner in module.named_modules():
        if is_metric(owner):
            continue
        for name, value in vars(owner).items():
            if isinstance(value, (list, dict, set)) and (path, name) not in kept and not name.startswith("_"):
                kept[path, name] = len(value)
        for name, buffer in owner.named_buffers(recurse=False):
            kept[path, name] = buffer.clone()
    return {".".join(filter(None, key)): value for key, value in kept.items()}


def refuse_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises RuntimeError where validation_step has left something behind: each rank has its own of it."""
    changed = sorted(name for name in after if name not in before or not same(before[name], after[name]))
    if changed:
        raise RuntimeError(
            f"validation_step changes {', '.join(changed[:3])}, of which each rank has its own with "
            f"validation='shared': use a torchmetrics object, whose states are added up, or {ALONE}."
        )


def _metrics(module: nn.Module) -> Iterator[tuple[str, Metric]]:
    return ((path, owner) for path, owner in module.named_modules() if isinstance(owner, Metric))


def _state(metric: Metric) -> dict[str, Any]:
    return {name: getattr(metric, name) for name in metric._defaults}
