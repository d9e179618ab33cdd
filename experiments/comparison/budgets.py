"""How long a run was allowed to learn, and on how much data: runs of other budgets are not measured against each other.

A longer budget has another learning rate schedule, and a run that was cut short misses targets that its scheme meets.
"""

from __future__ import annotations

from collections.abc import Sequence

from .run import MISSING, Run

LIMITS = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.fast_dev_run",
)
_DATA = "data.train_samples"  # of the summary


def differences(runs: Sequence[Run], others: Sequence[Run]) -> list[str]:
    """What the budgets of two groups differ in; also where one group holds several.

    >>> target = {"target": {"metric": "val_acc", "value": 0.9}}
    >>> long, short = (Run("here", target, {"trainer": {"max_epochs": epochs}}, dict) for epochs in (30, 4))
    >>> differences([long], [short]), differences([long], [long])
    (['trainer.max_epochs=30 against 4'], [])
    """
    found = []
    for key in (*LIMITS, _DATA):
        mine, theirs = _values(runs, key), _values(others, key)
        if mine != theirs or len(mine) > 1:
            found.append(f"{key}={' and '.join(mine)} against {' and '.join(theirs)}")
    return found


def _values(runs: Sequence[Run], key: str) -> list[str]:
    values = (run.get(key) for run in runs)
    # Lightning's word for "no limit" is null, and a setting that nobody has given is none either.
    return sorted({"none" if value in (None, MISSING) else str(value) for value in values})
