"""From an exception raised while a run is put together to the one sentence its user needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

# Importable name of each module that only an extra brings, and what to install instead of giving up.
EXTRAS = {
    **dict.fromkeys(("hydra", "matplotlib", "omegaconf", "rich", "sklearn", "torchmetrics", "wandb"), "experiments"),
    "torchvision": "vision",
    "transformers": "examples",
}
# By name, since their modules take seconds to import.
_LOST = {"TooFewWorkers", "AcceleratorError", "DistNetworkError", "DistStoreError"}
# Where something that needs no extra does as well.
_ALTERNATIVES = {"torchvision": ", or use data=digits", "transformers": ", or use another model"}


def refusal(error: BaseException) -> str | None:
    """Sentence that says why a configuration cannot run, or None where `error` is a defect and needs its traceback.

    Refusals are the ValueErrors and Lightning's MisconfigurationExceptions at the root of `error`'s causes, modules
    that are not installed, and a torchvision made for another torch, since torchmetrics imports any that there is.

    >>> try:
    ...     raise RuntimeError("instantiating scheme.strategy") from ValueError("t=3 does not divide k=8.")
    ... except RuntimeError as error:
    ...     refusal(error)
    't=3 does not divide k=8.'
    >>> refusal(ModuleNotFoundError("No module named 'sklearn'", name="sklearn"))
    "sklearn is not installed: pip install 'lwpd-lightning[experiments]'"
    >>> refusal(TypeError("a defect")) is None
    True
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, RuntimeError) and str(error).startswith("operator torchvision::"):
        return (
            f"The installed torchvision was not made for torch {version('torch')}: "
            "pip install the one that was, as 'lwpd-lightning[vision]' does, or uninstall it and use data=digits."
        )
    if isinstance(error, ValueError) and type(error).__name__ == "ValidationError":
        return _invalid(error)
    if isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException":
        return str(error)
    return None


def _invalid(error: Any) -> str:
    # Pydantic's, by which W&B checks its settings: a line for each, and an address to read on.
    return "; ".join(f"{'.'.join(map(str, one['loc']))}={one['input']}: {one['msg']}" for one in error.errors())


@contextlib.contextmanager
def in_a_sentence(*kinds: type[BaseException]) -> Iterator[None]:
    """End with exit status 1 and the sentence of `refusal` where one of ``kinds`` has one; a defect is raised on.

    Around imports: ``with in_a_sentence(ModuleNotFoundError):``.
    """
    try:
        yield
    except kinds as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        raise SystemExit(sentence) from error


def lost(error: BaseException) -> bool:
    """Whether `error` says that what the run stands on was lost: workers, links, memory, a disk or a device.

    What is not there or not allowed is a mistake in the configuration, and is so at the next start too.

    >>> lost(ConnectionError("rank 0 ended")), lost(FileNotFoundError("data.csv")), lost(ZeroDivisionError())
    (True, False, False)
    """
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    name, first = type(error).__name__, str(error).partition("\n")[0]
    killed = first.startswith(("worker ", "DataLoader worker ")) and "killed by" in first
    return isinstance(error, OSError | MemoryError) or name in _LOST or killed


def _missing(error: ModuleNotFoundError) -> str | None:
    # Lightning raises the error itself, without a name, for the loggers it wraps.
    named = [error.name.partition(".")[0]] if error.name else [module for module in EXTRAS if module in str(error)]
    if not named or named[0] not in EXTRAS:
        return None
    module = named[0]
    return f"{module} is not installed: pip install 'lwpd-lightning[{EXTRAS[module]}]'{_ALTERNATIVES.get(module, '')}"
