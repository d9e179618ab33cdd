"""Runs as a reader would have found them, with the figures that a test gives them."""

from typing import Any

import numpy as np

from experiments.comparison.run import Run
from experiments.comparison.series import Series, Wanted


def run(scheme: str = "lwpd", seed: int = 0, **given: Any) -> Run:
    """A run whose log holds `series`; other keywords replace parts of its summary or configuration."""
    series: Series = {name: np.array(column, dtype=float) for name, column in given.pop("series", {}).items()}
    coded = scheme not in ("ddp", "powersgd")
    summary: dict[str, Any] = {
        "scheme": scheme,
        "seed": seed,
        "world_size": 8,
        "code": {"family": "lwpd", "n": 8, "k": 4, "t": 2, "A": 2, "B": 2} if coded else None,
        "wait_for": 6 if coded else None,
        "target": {"metric": "val_acc", "mode": "max", "value": 0.9},
        "val_acc": 0.95,
        "time_to_target_s": 2.0,
        "update_s_mean": 0.01 if coded else None,
        **given.pop("summary", {}),
    }
    config: dict[str, Any] = {
        "seed": seed,
        "code": {"n": 8, "k": 4, "t": 2, "wait_for": 6},
        "scheme": {"name": scheme},
        "data": {"batch_size": 128},
        "straggler": {},
        "paths": {"run_dir": f"/runs/{scheme}/{seed}"},
        "callbacks": {"checkpoint": {"dirpath": f"/runs/{scheme}/{seed}/checkpoints"}},
        **given.pop("config", {}),
    }
    assert not given

    def read(wanted: Wanted) -> Series:
        return {name: column for name, column in series.items() if wanted(name)}

    return Run(f"/runs/{scheme}/{seed}", summary, config, read)
