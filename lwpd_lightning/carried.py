"""Finds what training_step carries on the module from one batch to the next, as an LSTM's hidden state.

Such a state belongs to the samples of a data part. A worker with several parts of a batch would go on in one with what
it kept of another, and train something else than one process does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lwpd_lightning.coding import Code
from lwpd_lightning.steering import is_metric

_WATCHED = 4  # calls: a hook may forget the state that the first one left


class Carried:
    """Watches the first calls of training_step for a tensor that one leaves and the next reads.

    What is only kept to be shown is read by no training_step, and what torchmetrics objects count is theirs.

    Args:
        module: whose training_step it is.
        code: which data parts workers call it for.
    """

    def __init__(self, module: nn.Module, code: Code) -> None:
        self._module, self._code = module, code
        several = any(len(code.parts(w)) > 1 for w in range(code.n))
        # torch.compile would compile anew for a mode that ends.
        compiled = any(hasattr(submodule, "_orig_mod") for submodule in module.modules())
        self._watches = _WATCHED if several and not compiled else 0
        self._left: dict[str, list[Tensor]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the training_step of a data part.

        Raises:
            MisconfigurationException: it read what the one before had left on the module.
        """
        if not self._watches:
            yield
            return
        self._watches -= 1
        before = _tensors(self._module)
        left = {name: [t for t in kept if _among(t, before.get(name, []))] for name, kept in self._left.items()}
        reads = _Reads({id(tensor): name for name, tensors in left.items() for tensor in tensors})
        with reads:
            yield
        if reads.found is not None:
            self._refuse(reads.found)
        after = _tensors(self._module) if self._watches else {}
        self._left = {
            name: [t for t in tensors if not _among(t, before.get(name, []))] for name, tensors in after.items()
        }

    def _refuse(self, name: str) -> None:
        code = self._code
        worker = max(range(code.n), key=lambda w: len(code.parts(w)))
        raise MisconfigurationException(
            f"training_step carries self.{name} from one batch to the next, and worker {worker} computes data parts "
            f"{list(code.parts(worker))} of every batch, so that it would go on in one with what it kept of another: "
            f"use a code that gives every worker one data part, such as uncoded({code.n})."
        )


class _Reads(TorchFunctionMode):
    """Notes which of some tensors, by identity, an operation is given."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: str | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._names and self.found is None:
            for argument in tree_leaves((args, kwargs)):
                self.found = self.found or self._names.get(id(argument))
        return func(*args, **(kwargs or {}))


def _among(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def _tensors(module: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors in plain attributes of a module and its submodules, by the attribute's name."""
    found: dict[str, list[Tensor]] = {}
    for path, owner in module.named_modules():
        if is_metric(owner):
            continue
        for name, value in vars(owner).items():
            if name not in _REGISTERED and isinstance(value, (Tensor, tuple, list, dict)):
                found[f"{path}.{name}".lstrip(".")] = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


_REGISTERED = ("_parameters", "_buffers", "_modules")
