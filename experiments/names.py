"""Where the configuration is, and how it names what is in Python.

- `_target_: ${experiments:models.mlp_classifier}` is `experiments.models.mlp_classifier` in a checkout; once it is
  installed this package is called `lwpd_experiments`.
- `stale: ${default:stale}` is what the chosen scheme's function has as its default, else LWPDStrategy's, which may
  follow from the compressor: it stands in one place, and the configuration that a run records holds the value.

Importing this module makes both known to OmegaConf.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf

# An installation has conf/ inside of the package; a checkout has it beside experiments/.
_HERE = Path(__file__).resolve().parent
CONFIG_PATH = str(_HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf")


def _default(name: str, _root_: DictConfig) -> Any:
    # Lightning takes seconds to import, and what does not resolve a configuration needs none of it.
    from lwpd_lightning import LWPDStrategy

    strategy = _root_.scheme.strategy
    for function in (resolve_name(strategy._target_), LWPDStrategy):
        parameter = inspect.signature(function).parameters.get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            if parameter.default is None and name in ("stale", "wire_dtype", "update_dtype"):
                return _following(name, strategy.compressor)
            return parameter.default
    raise ValueError(f"${{default:{name}}}: neither the scheme's function nor LWPDStrategy has a default for {name}.")


def _following(name: str, compressor: str | None) -> Any:
    from lwpd_lightning import uncoded
    from lwpd_lightning.settings import ExchangeSettings

    try:
        return getattr(ExchangeSettings(uncoded(2), compressor=compressor), name)
    except ValueError:  # which the scheme's own strategy says better
        return None


OmegaConf.register_new_resolver("experiments", lambda name: f"{__package__}.{name}", replace=True)
OmegaConf.register_new_resolver("default", _default, replace=True)
