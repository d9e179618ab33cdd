"""From a scheme's configuration to its strategy.

A scheme's file, `conf/scheme/NAME.yaml`, names a function (`_target_`), such as those of `lwpd_lightning.schemes`. Its
`code` holds the arguments that choose the code; beside it are those of the exchange.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


def strategy_of(scheme: DictConfig) -> Any:
    """The strategy that `scheme`, a configuration of the group, names.

    A `code` with a `_target_` of its own is built first and given as that, for a strategy that takes a Code.

    Raises:
        ValueError: its function cannot be imported; or, as the cause of Hydra's InstantiationException, the function's.

    >>> node = {"_target_": "lwpd_lightning.schemes.local", "wait_for": 3, "code": {"n": 4, "k": 4, "t": 2}}
    >>> strategy_of(OmegaConf.create({"strategy": node})).code
    Code(family='local', n=4, k=4, t=2, data_parts=2, blocks=2)
    """
    target = scheme.strategy._target_
    try:
        resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"scheme.strategy._target_={target} is not there ({error}): use a function that Python can import, "
            "with its folder on PYTHONPATH."
        ) from None
    arguments: Any = OmegaConf.to_container(scheme.strategy, resolve=True)
    code = arguments.get("code") or {}
    if code and "_target_" not in code:
        arguments |= arguments.pop("code")
    return instantiate(arguments, _convert_="all")
