"""A run's pictures are drawn from what its metrics.csv holds, and from nothing else."""

import pytest

from experiments.figures import arrivals, learning_curve, read_series

METRICS = """step,val_acc,exchange/arrived/0,exchange/arrived/1,exchange/staleness/1
1,,1.0,0.0,nan
2,,1.0,1.0,0.0
2,0.75,,,
"""
TARGET = {"metric": "val_acc", "value": 0.9}


@pytest.fixture
def series(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    return read_series(tmp_path / "metrics.csv")


def test_only_what_was_logged_is_read(series):
    assert series == {
        "val_acc": [(2, 0.75)],
        "exchange/arrived/0": [(1, 1.0), (2, 1.0)],
        "exchange/arrived/1": [(1, 0.0), (2, 1.0)],
        "exchange/staleness/1": [(2, 0.0)],
    }


def test_pictures_show_the_run(series, tmp_path):
    swapped = {**series, "exchange/arrived/0": series["exchange/arrived/1"], "exchange/arrived/1": [(1, 1.0), (2, 1.0)]}

    drawn = [arrivals(given, tmp_path / f"{i}.png").read_bytes() for i, given in enumerate([series, swapped, series])]

    assert drawn[0] == drawn[2] != drawn[1]
    assert learning_curve(series, TARGET, tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_not_drawn(tmp_path):
    nothing = read_series(tmp_path / "absent.csv")

    assert arrivals(nothing, tmp_path / "a.png") is None
    assert learning_curve(nothing, TARGET, tmp_path / "b.png") is None
    assert list(tmp_path.iterdir()) == []
