"""Curves out of logs as Lightning's CSVLogger writes them, whole or cut off, new or old."""

import math

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from experiments.comparison.series import learning_curve, of_curve, read_metrics


def logged(tmp_path, rows):
    logger = CSVLogger(tmp_path, name="", version="")
    for step, row in rows:
        logger.log_metrics(row, step=step)
    logger.save()
    return tmp_path / "metrics.csv"


def update(step, seconds=0.5, up=100, down=200):
    return step, {"exchange/update_s": seconds, "exchange/bytes_up": up, "exchange/bytes_down": down}


def test_a_validation_is_placed_by_what_was_logged_before_it(tmp_path):
    path = logged(
        tmp_path,
        [
            update(1), update(2), (1, {"val_acc": 0.5, "val_loss": 2.0}), (2, {"val_wall_s": 1.5}),
            update(3), (2, {"val_acc": 0.75, "val_loss": 1.0}), (3, {"val_wall_s": 2.25}),
            (3, {"val_acc": 0.75, "val_loss": 1.0}),  # of the finished model, after fit
        ],
    )  # fmt: skip

    curve = learning_curve(read_metrics(path, of_curve("val_acc")), "val_acc", startup_s=1.0)

    assert curve.value.tolist() == [0.5, 0.75]
    assert curve.updates.tolist() == [2, 3]
    assert curve.wall.tolist() == [1.5, 2.25]
    assert curve.bytes.tolist() == [600, 900]
    assert curve.first_reach(0.75, minimised=False) == 1
    assert curve.first_reach(0.5, minimised=True) == 0
    assert curve.first_reach(0.9, minimised=False) is None


def test_a_scheme_without_an_exchange_has_time_and_updates_but_no_bytes(tmp_path):
    path = logged(tmp_path, [(4, {"val_acc": 0.5}), (5, {"val_wall_s": 1.5}), (4, {"val_acc": 0.5})])

    curve = learning_curve(read_metrics(path, of_curve("val_acc")), "val_acc", None)

    assert (curve.updates.tolist(), curve.wall.tolist()) == ([5], [1.5])
    assert np.isnan(curve.bytes).all()


def test_an_older_log_tells_the_time_by_its_updates(tmp_path):
    path = logged(tmp_path, [update(1), update(2), (1, {"val_acc": 0.5}), (2, {"val_acc": 0.5})])

    curve = learning_curve(read_metrics(path, of_curve("val_acc")), "val_acc", startup_s=2.0)

    assert curve.wall.tolist() == [2.5]


@pytest.mark.parametrize("values", [[3.0, math.nan, 2.0, math.nan], [math.nan, 3.0], [math.nan, math.nan]])
def test_a_validation_that_gave_no_number_has_none_at_its_time(tmp_path, values):
    rows = []
    for step, value in enumerate(values, 1):
        rows += [update(step), (step - 1, {"val_loss": value}), (step, {"val_wall_s": float(step)})]

    curve = learning_curve(read_metrics(logged(tmp_path, rows), of_curve("val_loss")), "val_loss", None)

    np.testing.assert_array_equal(curve.value, values)
    assert curve.wall.tolist() == curve.updates.tolist() == [*range(1, len(values) + 1)]
    assert curve.first_reach(2.5, minimised=True) == (2 if 2.0 in values else None)


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    path = logged(tmp_path, [update(1), update(2)])
    whole = path.read_text()
    path.write_text(whole[:-5])

    assert len(read_metrics(path, of_curve("val_acc"))["exchange/update_s"]) == whole.count("\n") - 2


def test_only_wanted_columns_are_kept(tmp_path):
    path = logged(tmp_path, [update(1)])

    assert set(read_metrics(path, of_curve("val_acc"))) == {
        "step", "exchange/update_s", "exchange/bytes_up", "exchange/bytes_down"
    }  # fmt: skip
    assert read_metrics(path, lambda name: name == "nothing") == {}
    assert read_metrics(tmp_path / "none.csv", of_curve("val_acc")) == {}
    assert len(learning_curve({}, "val_acc", None).value) == 0
