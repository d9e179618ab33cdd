"""What validation changes on rank 0, the only rank that validates: the workers must train on with it.

A hook around validation may set a temperature, a weight of a loss, a flag. Under DDP every rank runs it; here rank 0
compares the module before and after and tells the workers what is different.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lwpd_lightning.exchange.state import StateLayout


_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MOST_VALUES = 4096  # in one attribute: what is longer is a record, not a setting


class Steering:
    """Watches the attributes and buffers of a module while rank 0 validates.

    Args:
        trainer: whose validation loop is watched until `close`.
        buffers: of its module.
    """

    def __init__(self, trainer: pl.Trainer, buffers: StateLayout) -> None:
        self._module, self._buffers = trainer.lightning_module, buffers
        self._loop = trainer.fit_loop.epoch_loop.val_loop
        self._before = {name: value for name, value in vars(self._loop).items() if name == "run"}  # by the user
        self._names: set[tuple[str, str]] = set()  # that validation has changed since they were told
        self._changed = False
        self._loop.run = self._watched(self._loop.run)  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave the loop as it was."""
        vars(self._loop).pop("run", None)
        vars(self._loop).update(self._before)

    def take(self) -> tuple[bool, dict[str, Any]]:
        """Whether validation has changed anything since the last time, and the values now of the attributes."""
        changed, self._changed = self._changed, False
        modules = dict(self._module.named_modules())
        names, self._names = self._names, set()
        return changed, {
            f"{path}:{name}": modules[path].__dict__[name]
            for path, name in sorted(names)
            if path in modules and name in modules[path].__dict__
        }

    def _watched(self, run: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(run)
        def watched() -> Any:
            before, buffers = copy.deepcopy(attributes(self._module)), self._digest()
            result = run()
            after = attributes(self._module)
            changed = {key for key in after if key not in before or not same(before[key], after[key])}
            self._names |= changed
            self._changed |= bool(changed) or buffers != self._digest()
            return result

        return watched

    def _digest(self) -> bytes:
        buffer = self._buffers.buffer()
        self._buffers.pack(buffer)
        return hashlib.sha256(buffer.numpy().data).digest()


def steer(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set on a worker what `Steering.take` gave on rank 0."""
    modules = dict(module.named_modules())
    for key, value in attributes.items():
        path, name = key.rsplit(":", 1)
        if path in modules:
            modules[path].__dict__[name] = value


def attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """The plain attributes of a module and its submodules: what a hook sets to steer the training."""
    # A torchmetrics object counts what rank 0 validates.
    owners = ((path, owner) for path, owner in module.named_modules() if not is_metric(owner))
    return {
        (path, name): value
        for path, owner in owners
        for name, value in vars(owner).items()
        if name not in _OWN and _plain(value)
    }


def is_metric(module: nn.Module) -> bool:
    """Whether a module is a torchmetrics object, which need not be installed: its state is its own."""
    return hasattr(module, "compute") and hasattr(module, "reset")


def _plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad and value.numel() <= _MOST_VALUES
    if isinstance(value, (list, tuple)):
        return len(value) <= _MOST_VALUES and all(map(_plain, value))
    if isinstance(value, dict):
        return len(value) <= _MOST_VALUES and all(isinstance(k, _PLAIN) and _plain(v) for k, v in value.items())
    return type(value) in _PLAIN


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, NaN and what tensors hold included."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.device, one.dtype) == (other.device, other.dtype)
        return alike and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other or (one != one and other != other))


# What PyTorch and Lightning themselves keep in a module.
_OWN = (set(nn.Module().__dict__) | set(pl.LightningModule().__dict__)) - {"training"}
