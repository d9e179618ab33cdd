"""From an exception raised while a run is put together to the one sentence its user needs."""

from __future__ import annotations

# Importable name of each module that only the extra brings.
EXTRA = ("hydra", "matplotlib", "omegaconf", "rich", "sklearn", "torchmetrics", "wandb")


def refusal(error: BaseException) -> str | None:
    """Sentence that says why a configuration cannot run, or None where `error` is a defect and needs its traceback.

    Refusals are the ValueErrors and Lightning's MisconfigurationExceptions at the root of `error`'s causes, and
    modules that are not installed.

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
    if isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException":
        return str(error)
    return None


def _missing(error: ModuleNotFoundError) -> str | None:
    # Lightning raises the error itself, without a name, for the loggers it wraps.
    named = [error.name.partition(".")[0]] if error.name else [module for module in EXTRA if module in str(error)]
    if not set(named) & set(EXTRA):
        return None
    return f"{named[0]} is not installed: pip install 'lwpd-lightning[experiments]'"
