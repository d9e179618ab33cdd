"""What figures are drawn from; how they look is for eyes."""

import re
from datetime import date

import numpy as np
import pytest
from matplotlib.axes import Axes

from experiments.comparison import curves, figures, page, timeline, workers
from experiments.comparison.curves import band, focus, statistic
from experiments.comparison.groups import group
from experiments.comparison.schemes import known
from experiments.comparison.style import looks
from tests.experiments.comparison.runs import run

NAN = float("nan")


def exchange(arrived, staleness):
    """Series of updates in which worker i arrived as `arrived[i]` says."""
    series = {f"exchange/arrived/{worker}": row for worker, row in enumerate(arrived)}
    return {**series, **{f"exchange/staleness/{worker}": row for worker, row in enumerate(staleness)}}


def curve(values, wall, updates=None):
    """Series of validations, each followed by its clock."""
    updates = updates or range(1, len(values) + 1)
    rows = [row for v, w, u in zip(values, wall, updates, strict=True) for row in ((v, NAN, u - 1), (NAN, w, u))]
    metric, clock, step = zip(*rows, strict=True)
    return {"val_acc": metric, "val_wall_s": clock, "step": step}


def test_the_timeline_tells_late_absent_and_lost_apart():
    one = run(
        series=exchange([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], [[0, 0, 0, 0], [NAN, 1, NAN, 5], [0, 0, NAN, NAN]]),
        summary={"failures": [{"worker": 2, "update": 2, "reason": "killed"}]},
    )

    fresh, absent, lost = timeline.FRESH, timeline.ABSENT, timeline.LOST
    assert timeline.states(one).tolist() == [[fresh] * 4, [absent, 1, absent, 5], [fresh, fresh, lost, lost]]


@pytest.mark.parametrize(("lost_at", "first"), [(None, 440), (10, 0), (500, 470), (999, 880)])
def test_the_timeline_shows_the_first_loss(lost_at, first):
    table = np.zeros((3, 1000), dtype=int)
    if lost_at is not None:
        table[1, lost_at:] = timeline.LOST

    assert timeline.window(table) == first
    assert timeline.window(table[:, :50]) == 0


def test_each_worker_has_its_own_share():
    one = run(
        series=exchange([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [NAN, 3, NAN, NAN], [NAN] * 4])
    )

    assert workers.inclusion(one) == [1.0, 0.25, 0.0]
    assert workers.staleness(one)[:2] == [0.0, 3.0]
    assert np.isnan(workers.staleness(one)[2])
    assert workers.inclusion(run("ddp")) == []


def test_the_band_is_over_runs_at_the_same_validation():
    runs = [
        run(seed=seed, series=curve([0.1 * seed, 0.5 + 0.1 * seed], [1.0 + seed, 10.0 + seed])) for seed in range(5)
    ]
    cut_off = run(seed=5, series=curve([0.9], [0.5], [7]))  # a validation that no other run made

    spent, median, low, high = band([*runs, cut_off], "wall")

    np.testing.assert_allclose(spent, [3.0, 12.0])
    np.testing.assert_allclose(median, [0.2, 0.7])
    np.testing.assert_allclose(low, [0.1, 0.6])
    np.testing.assert_allclose(high, [0.3, 0.8])
    assert band(runs, "bytes") is None


def test_a_scheme_has_one_colour_and_its_groups_are_told_apart():
    groups = group([run("lwpd", summary={"wait_for": k}) for k in (5, 6, 7)] + [run("k_async")])

    drawn = looks(groups)

    assert {look.colour for look in drawn[:3]} == {known()["lwpd"].colour}
    assert len({(look.dashes, look.fill) for look in drawn[:3]}) == 3
    assert drawn[3].colour == looks(group([run("k_async")]))[0].colour


def test_no_two_schemes_look_the_same_or_have_one_place():
    for values in zip(*known().values(), strict=True):
        assert len(set(values)) == len(known()) > 12


def test_what_was_not_logged_is_said_and_the_rest_is_drawn(tmp_path):
    monitored = {**curve([0.4, 0.8], [1.0, 2.0]), **exchange([[1, NAN, 1, NAN]], [[0, NAN, 0, NAN]])}
    groups = group([run("lwpd", series=monitored), run("ddp", series=curve([0.5, 0.9], [1.0, 3.0])), run("powersgd")])

    pictures, remarks = figures.draw(tmp_path, groups, "updates")

    assert [picture.path.name for picture in pictures] == [
        "val_acc_against_updates.png", "val_acc_against_wall.png", "workers.png", "arrivals.png"
    ]  # fmt: skip
    assert all(picture.path.stat().st_size > 0 for picture in pictures)
    assert "val_acc against wall time: not logged by powersgd." in remarks
    assert "val_acc against bytes over all links: not logged by lwpd, ddp, powersgd." in remarks


def test_single_runs_have_no_quartiles():
    single, both = group([run("lwpd"), run("ddp")]), group([run("lwpd", 0), run("lwpd", 1), run("ddp")])

    assert statistic(single) == "single runs"
    assert statistic(both) == "median and quartiles over runs, where there are several"
    assert statistic(group([run("lwpd", 0), run("lwpd", 1)])) == "median and quartiles over runs"


def test_a_curve_that_is_nowhere_in_sight_is_said_to_be(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(curves, "legend", lambda figure, lines, title: shown.extend(line.get_label() for line in lines))
    good = [run(scheme, series=curve([0.9, 0.95, 0.97], [1.0, 2.0, 3.0], (1, 2, 3))) for scheme in ("lwpd", "local")]
    bad = run("ddp", series=curve([0.1], [1.0], (1,)))

    curves.draw(tmp_path / "curve.png", group([*good, bad]), "updates")

    assert shown == ["lwpd", "local", "ddp (out of sight)"]


@pytest.mark.parametrize(("updates", "label"), [((1, 5), "updates"), ((1, 50), "updates, logarithmic")])
def test_a_logarithmic_axis_says_so(tmp_path, monkeypatch, updates, label):
    labels = []
    set_xlabel = Axes.set_xlabel
    monkeypatch.setattr(Axes, "set_xlabel", lambda axes, text: (labels.append(text), set_xlabel(axes, text)))

    curves.draw(tmp_path / "curve.png", group([run(series=curve([0.9, 0.9], [1.0, 3.0], updates))]), "updates")

    assert labels == [label]


@pytest.mark.parametrize(("schemes", "titles"), [(curves.TOGETHER, []), (curves.TOGETHER + 1, list(known())[:6])])
def test_many_groups_have_a_panel_each(tmp_path, monkeypatch, schemes, titles):
    named = []
    set_title = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **how: (named.append(text), set_title(axes, text, **how)))
    runs = [run(scheme, series=curve([0.9, 0.9], [1.0, 3.0])) for scheme in list(known())[:schemes]]

    assert curves.draw(tmp_path / "curve.png", group(runs, ["scheme"]), "wall") == []

    assert named == titles


def test_the_page_has_a_heading_and_a_date(tmp_path):
    page.write(tmp_path / "page.html", "2 runs", (["group"], [["lwpd"]]), "note", [], group([run()]), [])

    text = (tmp_path / "page.html").read_text()
    heading = f"Comparison of runs, {date.today().isoformat()}"
    assert f"<title>{heading}</title>" in text
    assert f"<h1>{heading}</h1>" in text
    assert "<p>2 runs</p>" in text


def test_the_page_asks_for_nothing_outside(tmp_path):
    page.write(tmp_path / "page.html", "2 runs", (["group"], [["lwpd"]]), "note", [], group([run()]), [])

    assert re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?!data:)", (tmp_path / "page.html").read_text()) == []


@pytest.mark.parametrize("target", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("minimised", [False, True])
def test_the_target_and_the_best_are_always_in_sight(target, minimised):
    values = np.linspace(0.2, 0.9, 50)

    low, high = focus(values, {target}, minimised)

    assert low < min(target, 0.2 if minimised else 0.9)
    assert high > max(target, 0.2 if minimised else 0.9)
