"""How a command of Hydra's says that a configuration cannot run: in one sentence, by the names that were typed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException

from .refusals import refusal
from .typed import by_typed_names


def refuse(error: Exception) -> NoReturn:
    """Raise CompactHydraException with `error`'s sentence; `error` itself where it is a defect."""
    sentence = refusal(error)
    if sentence is None:
        raise error
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    raise CompactHydraException(by_typed_names(sentence, typed)) from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, a refusal of ours ends the process with status 1 and its sentence, and no line of Hydra's around it.

    Hydra's own errors, which are of kinds of their own, and defects pass; so does all with HYDRA_FULL_ERROR=1.
    """
    try:
        yield
    except CompactHydraException as error:
        if type(error) is not CompactHydraException or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(str(error)) from error
