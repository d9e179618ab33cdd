"""Each group is measured against the right one, or against none, with the reason."""

import pytest

from experiments.comparison import table
from experiments.comparison.baselines import baselines
from experiments.comparison.groups import group
from tests.experiments.comparison.runs import run

SLOW = {"_target_": "lwpd_lightning.injection.StragglerInjector", "slowdown": {1: 5.0}}


def budget(scheme, *, samples=1000, **trainer):
    return run(scheme, config={"trainer": trainer}, summary={"data": {"train_samples": samples}})


def test_a_longer_run_has_no_ratio_to_a_shorter_one():
    groups = group([budget("lwpd", max_epochs=30), budget("local", max_epochs=4), budget("ddp", max_epochs=4)])

    against, reasons = baselines(groups, None)

    assert [row[-2] for row in table.cells(table.rows(groups, against, "wall"))[1]] == ["-", "1.00", "base"]
    assert reasons == [
        "No ratio for lwpd max_epochs=30: ddp max_epochs=4 had another budget (trainer.max_epochs=30 against 4)."
    ]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"max_steps": 100}, "trainer.max_steps=none against 100"),
        ({"max_time": "00:00:10:00"}, "trainer.max_time=none against 00:00:10:00"),
        ({"limit_train_batches": 0.1}, "trainer.limit_train_batches=none against 0.1"),
        ({"samples": 10}, "data.train_samples=1000 against 10"),
    ],
)
def test_less_data_or_fewer_steps_are_another_budget(other, difference):
    _, (reason,) = baselines(group([budget("lwpd"), budget("ddp", **other)]), "scheme=ddp")

    assert f"had another budget ({difference})." in reason


def test_a_group_is_measured_against_the_baseline_of_its_own_budget():
    groups = group([budget(scheme, max_epochs=epochs) for scheme in ("lwpd", "ddp") for epochs in (4, 30)])

    against, reasons = baselines(groups, None)

    assert [against[index].label for index in range(4)] == ["ddp max_epochs=4", "ddp max_epochs=30"] * 2
    assert reasons == []


def test_a_group_that_pools_budgets_is_measured_against_nothing():
    groups = group([budget("lwpd", max_epochs=4), budget("lwpd", max_epochs=30), budget("ddp")], ["scheme"])

    against, reasons = baselines(groups, None)

    assert set(against) == {1}
    assert "trainer.max_epochs=30 and 4 against none" in reasons[0]


def test_the_baseline_of_a_group_has_its_other_settings():
    runs = [run(scheme, config={"straggler": how}) for scheme in ("lwpd", "k_async", "ddp") for how in ({}, SLOW)]
    groups = group(runs)

    against, reasons = baselines(groups, "scheme=ddp")

    assert (len(against), reasons) == (6, [])
    for index, one in enumerate(groups):
        assert against[index].scheme == "ddp"
        assert against[index].values["straggler"] == one.values["straggler"]


def test_without_a_counterpart_a_group_is_measured_against_nothing():
    runs = [
        run("lwpd", config={"data": {"batch_size": 32}}),
        *(run("ddp", config={"data": {"batch_size": size}}) for size in (64, 128)),
    ]

    against, reasons = baselines(group(runs), "scheme=ddp")

    assert set(against) == {1, 2}
    assert reasons == ["No ratio for lwpd batch_size=32: no run of ddp has its other settings."]


def test_groups_that_lack_a_ratio_for_one_reason_share_a_line():
    groups = group([budget("lwpd", max_epochs=30), budget("local", max_epochs=30), budget("ddp", max_epochs=4)])

    assert baselines(groups, None)[1] == [
        "No ratio for lwpd max_epochs=30; local max_epochs=30: ddp max_epochs=4 had another budget "
        "(trainer.max_epochs=30 against 4)."
    ]


def test_why_a_group_with_a_baseline_has_no_ratio_is_said():
    missed, silent = {"time_to_target_s": None, "val_acc": 0.5}, {"bytes_up": None}
    groups = group([run("lwpd", summary=missed), run("local", summary=silent), run("ddp")])
    rows = table.rows(groups, baselines(groups, None)[0], "wall")

    assert table.unrated(rows, "wall") == [
        "No ratio for lwpd: most pairs, or the median run of either, missed the target."
    ]
    assert "No ratio for local: its bytes to the target, or its baseline's, was not measured." in table.unrated(
        table.rows(groups, baselines(groups, None)[0], "bytes"), "bytes"
    )


def test_the_plainest_scheme_is_the_baseline_of_those_who_name_none():
    groups = group([run("lwpd"), run("k_sync"), run("sync")])

    assert {base.label for base in baselines(groups, None)[0].values()} == {"sync"}
    assert baselines(group([run("lwpd"), run("local")]), None) == ({}, [])


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("ddp", r"^--baseline ddp names no group: use key=value, such as scheme=ddp.$"),
        ("scheme=ddp", r"^--baseline scheme=ddp fits no group: there is scheme=k_async, lwpd.$"),
        ("wait_for=5", r"^--baseline wait_for=5 fits no group: none holds such runs alone, so group by wait_for too.$"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(wanted, sentence):
    groups = group([run("lwpd"), run("lwpd", summary={"wait_for": 5}), run("k_async")], ["scheme"])

    with pytest.raises(ValueError, match=sentence):
        baselines(groups, wanted)
