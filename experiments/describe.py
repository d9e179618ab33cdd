"""Describe a code before anyone trains with it: `python -m experiments.describe code=lwpd_16_8_4 scheme=local`.

Takes the settings of `experiments.train` and starts no worker. Prints the generator, who computes what, what arrivals
suffice and what it costs, and draws it to `out=FILE.png`, by default `code.png` in the run's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    import hydra

from omegaconf import DictConfig

from .names import CONFIG_PATH
from .places import refuse_unwritable
from .sentences import alone, refuse
from .typed import options_first, refuse_numbers, refuse_words


def run(cfg: DictConfig) -> Path:
    """Print and draw the code that `cfg` names.

    Returns:
        Where the picture is.

    Raises:
        CompactHydraException: the configuration has no code or cannot run; one sentence says why.
    """
    try:
        refuse_numbers(cfg)
        picture = _picture(cfg)
        # Lightning takes seconds to import, and `--help` needs none of it.
        from lwpd_lightning import LWPDStrategy

        from .description import describe
        from .drawing import draw
        from .schemes import strategy_of

        strategy = strategy_of(cfg.scheme)
        if not isinstance(strategy, LWPDStrategy):
            raise ValueError(f"scheme={cfg.scheme.name} has no code to describe: use scheme=lwpd, local or k_async.")
        settings = strategy.settings.resolved(strategy.code.n + strategy.settings.dedicated_coordinator)
        describe(settings, cfg.scheme.name)
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(strategy.code, settings.waits[1], picture)
    except Exception as error:
        refuse(error)
    print(f"drawn to {picture}")
    return picture


def _picture(cfg: DictConfig) -> Path:
    if cfg.out is None:
        return Path(cfg.paths.run_dir) / "code.png"
    picture = Path(str(cfg.out))
    if picture.suffix != ".png" or picture.is_dir():
        raise ValueError(f"out={cfg.out} is no PNG file: use a name that ends in .png.")
    refuse_unwritable(f"out={cfg.out}", picture.parent)
    return picture


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="describe")
def _command(cfg: DictConfig) -> None:
    with alone():
        run(cfg)


def main() -> None:
    """Command line; exit status 1 and one sentence where the configuration cannot run."""
    if (sentence := refuse_words(sys.argv[1:])) is not None:
        raise SystemExit(sentence)
    sys.argv[1:] = options_first(sys.argv[1:])
    _command()


if __name__ == "__main__":
    main()
