"""The grids of peers that have settings of their own: as many points as the workload's, tuned like any other's.

What the authors leave to the user is in them: H of local steps; whether PowerSGD begins after a tenth of the updates,
as torch's manual advises, or at once, as its authors' code does; the rate of Adam for 1-bit Adam, whose warm-up is a
fifth of the updates, within the 15 to 25 % of its authors. Updates are those that DDP needs to the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Point = tuple[str, ...]
Grid = tuple[Point, ...]

POWERSGD = ("powersgd_1", "powersgd_2", "powersgd", "powersgd_8")
DILOCO = ("diloco", "diloco_int8")
LOCAL_STEPS = ("local_sgd", *DILOCO)
_OPTIMIZER, _STRATEGY = "model.optimizer.", "scheme.strategy."


def _sgd(lr: float, *others: str, momentum: float | None = None) -> Point:
    return (f"{_OPTIMIZER}lr={lr}", *([f"{_OPTIMIZER}momentum={momentum}"] if momentum is not None else []), *others)


def _adamw(lr: float, *others: str) -> Point:
    return (f"{_OPTIMIZER}lr={lr}", f"{_OPTIMIZER}betas=[0.9,0.95]", *others)


def _every(updates: int) -> str:
    return f"{_STRATEGY}every={updates}"


def _whole(updates: int) -> str:
    return f"{_STRATEGY}uncompressed_updates={updates}"


def _warm_up(updates: int) -> str:
    return f"{_STRATEGY}warmup_updates={updates}"


def _instead_of_sgd(warmup_updates: int) -> Grid:
    """AdamW's points. With torch's eps, 1e-8, the first compressed updates of the mlp diverged at all four rates tried.

    Units that hardly had a gradient in the warm-up have hardly any variance, and a sign of their tensor's magnitude.
    """
    kind = (f"{_OPTIMIZER}_target_=torch.optim.AdamW", f"~{_OPTIMIZER}momentum")
    rates = ((0.0005, 1e-4), (0.001, 1e-4), (0.002, 1e-4), (0.002, 1e-3))
    words = ((f"{_OPTIMIZER}lr={lr}", f"+{_OPTIMIZER}eps={eps}") for lr, eps in rates)
    return tuple((*kind, *of_both, _warm_up(warmup_updates)) for of_both in words)


def _all(schemes: Iterable[str], *points: Point) -> dict[str, Grid]:
    return dict.fromkeys(schemes, points)


# Workload -> scheme -> its grid.
GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "mlp": {
        **_all(
            POWERSGD,
            _sgd(0.1),
            _sgd(0.1, _whole(5)),
            _sgd(1.0, _whole(5), momentum=0.0),
            _sgd(1.0, momentum=0.0),
        ),
        "local_sgd": (_sgd(0.1, _every(5)), _sgd(0.1, _every(10)), _sgd(0.2, _every(10)), _sgd(0.1, _every(20))),
        **_all(DILOCO, _sgd(0.05, _every(5)), _sgd(0.1, _every(5)), _sgd(0.1, _every(10)), _sgd(0.05, _every(10))),
        "onebit_adam": _instead_of_sgd(10),
    },
    "cnn": {
        **_all(
            POWERSGD,
            _sgd(0.1),
            _sgd(0.1, _whole(5)),
            _sgd(0.2, _whole(5), momentum=0.0),
            _sgd(0.5, momentum=0.0),
        ),
        "local_sgd": (_sgd(0.1, _every(5)), _sgd(0.1, _every(10)), _sgd(0.05, _every(5)), _sgd(0.1, _every(20))),
        **_all(DILOCO, _sgd(0.05, _every(5)), _sgd(0.1, _every(5)), _sgd(0.1, _every(10)), _sgd(0.05, _every(10))),
        "onebit_adam": _instead_of_sgd(9),
    },
    "gpt": {
        **_all(POWERSGD, _adamw(0.002), _adamw(0.002, _whole(7)), _adamw(0.001, _whole(7))),
        "local_sgd": (_adamw(0.002, _every(5)), _adamw(0.002, _every(10)), _adamw(0.001, _every(10))),
        # The outer momentum multiplies what ranks move by: at half of DDP's rate 60 updates led less far than at a quarter.
        **_all(DILOCO, _adamw(0.0005, _every(5)), _adamw(0.00025, _every(5)), _adamw(0.0005, _every(10))),
        "onebit_adam": tuple(_adamw(lr, _warm_up(14)) for lr in (0.001, 0.002, 0.004)),
    },
    "gpt10m": {
        **_all(POWERSGD, _adamw(0.001), _adamw(0.001, _whole(3)), _adamw(0.0005, _whole(3))),
        "local_sgd": (_adamw(0.001, _every(5)), _adamw(0.001, _every(10)), _adamw(0.0005, _every(10))),
        **_all(DILOCO, _adamw(0.00025, _every(5)), _adamw(0.000125, _every(5)), _adamw(0.00025, _every(10))),
        "onebit_adam": tuple(_adamw(lr, _warm_up(5)) for lr in (0.0005, 0.001, 0.002)),
    },
}


def shown(point: Point) -> str:
    """A point in the words of a table.

    >>> shown(("model.optimizer.lr=0.1", "~model.optimizer.momentum", "scheme.strategy.every=5"))
    'lr=0.1 every=5'
    """
    said = [word.removeprefix("+") for word in point if not word.startswith("~")]
    for prefix in (_OPTIMIZER, _STRATEGY, "_target_=torch.optim."):
        said = [word.removeprefix(prefix) for word in said]
    return " ".join(said)
