"""What a user typed: refused in its own words, before anything is imported that takes seconds."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig

from .choices import refuse_choices
from .given import is_whole
from .processes import as_typed
from .sizes import refuse_sizes

# Words of Hydra's own groups, and of a preset that chooses one, that only an extra brings: module and extra.
_PLUGINS = {
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "hydra/sweeper=optuna": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
    "sweep=learning_rate": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
}


# Options of Hydra's whose value is the next word, unless it follows a "=".
_VALUED = {"--cfg", "-c", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p"}


def options_first(words: Sequence[str]) -> list[str]:
    """Hydra's options before the settings: between two settings argparse would not know the second.

    >>> options_first(["code=lwpd_4_2_2", "-m", "seed=0,1", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'code=lwpd_4_2_2', 'seed=0,1']
    """
    options, settings = [], []
    waiting = iter(words)
    for word in waiting:
        if not word.startswith("-"):
            settings.append(word)
            continue
        options.append(word)
        if word in _VALUED:
            options.extend(next(([value] for value in waiting), []))
    return [*options, *settings]


def refuse_words(words: Sequence[str]) -> str | None:
    """A sentence on words of the command line that can be known to fail before Hydra reads them; None: go on."""
    return refuse_plugins(words) or refuse_choices(words)


def refuse_plugins(words: Iterable[str]) -> str | None:
    """A sentence on a word of the command line that needs an extra which is not installed; None: there is none."""
    for word in words:
        if word not in _PLUGINS:
            continue
        module, extra = _PLUGINS[word]
        if not _installed(module):
            return f"{word} needs a plugin that is not installed: pip install 'lwpd-lightning[{extra}]'"
    return None


def _installed(module: str) -> bool:
    """Whether a module can be found; its package is not there either where no plugin is.

    >>> _installed("os.path"), _installed("no_such_package.module")
    (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def refuse_numbers(cfg: DictConfig) -> None:
    """Check what can be known of a configuration by arithmetic.

    Raises:
        ValueError: it cannot run; its sentence names the setting, its value and what would work.
    """
    most = 2**32 - 1
    if not is_whole(cfg.seed) or not 0 <= cfg.seed <= most:
        raise ValueError(f"seed={as_typed(cfg.seed)} is no seed: use a whole number in 0..{most}.")
    for name in ("n", "k", "t"):
        if not is_whole(cfg.code[name]):
            raise ValueError(
                f"code.{name}={as_typed(cfg.code[name])} is no size: use a whole number, or a size whole, "
                "code=lwpd_8_4_2."
            )
    if cfg.code.n < 1:
        raise ValueError(
            f"code.n={cfg.code.n} is no number of workers: use 1 or more, or a size whole, code=lwpd_8_4_2."
        )
    refuse_sizes(cfg)
    _refuse_waiting(cfg)
    _refuse_devices(cfg)


def _refuse_waiting(cfg: DictConfig) -> None:
    strategy = cfg.scheme.strategy
    if "wait_for" not in strategy:
        return
    wait_for, n, coordinator = strategy.wait_for, cfg.code.n, strategy.get("dedicated_coordinator")
    least = 1 if coordinator or n == 1 else 2
    if wait_for in (None, "adaptive") or (is_whole(wait_for) and least <= wait_for <= n):
        return
    setting = "code.wait_for" if wait_for == cfg.code.wait_for else "scheme.strategy.wait_for"
    alone = ", or 1 with scheme.strategy.dedicated_coordinator=true" if least == 2 and wait_for == 1 else ""
    raise ValueError(
        f"{setting}={as_typed(wait_for)}: use {least}..{n} codewords of the n={n} workers, or adaptive{alone}."
    )


def _refuse_devices(cfg: DictConfig) -> None:
    strategy, devices, nodes = cfg.scheme.strategy, cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
    if "wait_for" not in strategy or not isinstance(devices, int) or not isinstance(nodes, int):
        return
    coordinator, n = bool(strategy.get("dedicated_coordinator")), cfg.code.n
    given, wanted = devices * nodes, n + coordinator
    if given != wanted:
        beside = " and a coordinator" if coordinator else ""
        on = f" on {nodes} nodes" if nodes > 1 else ""
        works = f"trainer.devices={wanted // nodes}" if wanted % nodes == 0 else f"trainer.num_nodes=1 devices={wanted}"
        raise ValueError(
            f"trainer.devices={devices}{on} makes {given} ranks, and the code has n={n} workers{beside}: use {works}, "
            f"or code.n={given - coordinator} with sizes that go with it."
        )


def by_typed_names(sentence: str, overrides: Sequence[str]) -> str:
    """Settings in a sentence by the names that they were typed by.

    A sentence says `name=value`, `name[key]=value`, or that a setting `names` what is not there.

    >>> by_typed_names("heartbeat_s=-1 is no duration: use ...", ["scheme.strategy.heartbeat_s=-1"])
    'scheme.strategy.heartbeat_s=-1 is no duration: use ...'
    """
    for override in overrides:
        path = override.lstrip("+~").partition("=")[0]
        _, dot, name = path.rpartition(".")
        if dot and path not in sentence:
            sentence = re.sub(rf"(?<![\w.]){re.escape(name)}(?==|\[| names )", path, sentence, count=1)
    return sentence
