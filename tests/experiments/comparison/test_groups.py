"""Runs that differ in nothing but the seed share a group, and each group is measured against the right one."""

import pytest

from experiments.comparison.baselines import baselines
from experiments.comparison.groups import group
from experiments.comparison.labels import unsaid
from tests.experiments.comparison.runs import run

SLOW = {"_target_": "lwpd_lightning.injection.StragglerInjector", "slowdown": {1: 5.0}}


def labels(groups):
    return [one.label for one in groups]


def test_everything_but_the_seed_tells_runs_apart_and_schemes_have_their_order():
    runs = [run(scheme, seed) for seed in (0, 1) for scheme in ("ddp", "k_async", "lwpd")]

    groups = group(runs)

    assert labels(groups) == ["lwpd", "k_async", "ddp"]
    assert [[member.get("seed") for member in one.runs] for one in groups] == [[0, 1]] * 3
    assert all(not one.pooled for one in groups)


def test_a_setting_of_several_schemes_is_told_apart_by_its_name_and_a_look_is_no_setting():
    def configured(scheme, dtype, colour):
        strategy = {"_target_": f"lwpd_lightning.schemes.{scheme}", "wire_dtype": dtype, "code": {"n": 8}}
        return run(scheme, config={"scheme": {"name": scheme, "look": {"colour": colour}, "strategy": strategy}})

    runs = [configured(scheme, dtype, dtype) for scheme in ("lwpd", "k_async") for dtype in ("int8", "bfloat16")]

    assert labels(group(runs)) == [
        "lwpd wire_dtype=bfloat16", "lwpd wire_dtype=int8", "k_async wire_dtype=bfloat16", "k_async wire_dtype=int8"
    ]  # fmt: skip
    assert len(group([configured("lwpd", "int8", colour) for colour in ("red", "blue")])) == 1


def test_two_functions_of_one_scheme_are_told_apart():
    def made_by(function):
        return run(config={"scheme": {"name": "mine", "strategy": {"_target_": f"at_home.{function}"}}})

    assert len(group([made_by("one"), made_by("another")])) == 2


def test_runs_that_differ_in_nothing_are_one_group():
    assert labels(group([run(seed=0), run(seed=1)])) == ["lwpd"]


def test_a_seed_or_a_directory_inside_of_a_setting_splits_nothing():
    runs = [run(seed=seed, config={"straggler": {**SLOW, "seed": seed}}) for seed in (0, 1)]

    assert len(group(runs)) == 1


def test_seeds_of_two_sweeps_and_of_single_runs_are_one_group():
    def named(name, seed):
        where = f"/{name}/{seed}"
        return run(
            seed=seed,
            config={
                "sweep": {"name": name, "resume": seed > 2},
                "task_name": name,
                "tags": [name],
                "logger": {"wandb": {"group": name}},
                "paths": {"root": f"/{name}", "run_dir": where, "data": f"/data/{name}"},
                "data": {"batch_size": 128, "root": f"/data/{name}/digits"},
                "callbacks": {"checkpoint": {"dirpath": f"{where}/checkpoints"}},
                "trainer": {"default_root_dir": where},
                "choices": {"sweep": name},
            },
        )

    runs = [named(name, seed) for seed, name in enumerate(["monday", "monday", "tuesday", "tuesday", "train"])]

    (one,) = group(runs)

    assert (one.label, [member.get("seed") for member in one.runs], one.pooled) == ("lwpd", [0, 1, 2, 3, 4], [])


def test_a_name_does_not_stand_in_for_what_really_differs():
    runs = [
        run(config={"sweep": {"name": name}, "data": {"batch_size": size}})
        for name, size in (("monday", 64), ("tuesday", 128))
    ]

    assert labels(group(runs)) == ["batch_size=64", "batch_size=128"]


def test_a_setting_that_differs_is_shown_where_the_scheme_tells_the_runs_apart_too():
    runs = [
        run("lwpd", config={"data": {"batch_size": 64}, "trainer": {"max_epochs": 30}}),
        run("ddp", config={"data": {"batch_size": 128}, "trainer": {"max_epochs": 4}}),
    ]

    assert labels(group(runs)) == ["lwpd batch_size=64 max_epochs=30", "ddp batch_size=128 max_epochs=4"]


def test_what_follows_from_the_scheme_is_not_shown():
    runs = [
        run(scheme, config={"scheme": {"name": scheme, "strategy": {"stale": stale}}})
        for scheme, stale in (("k_async", "apply"), ("k_sync", "drop"))
    ]

    assert labels(group(runs)) == ["k_async", "k_sync"]


def test_labels_say_only_what_differs():
    sizes = [run(seed=seed, config={"data": {"batch_size": size}}) for size in (64, 256, 128) for seed in (0, 1)]

    assert labels(group(sizes)) == ["batch_size=64", "batch_size=128", "batch_size=256"]


def test_of_many_settings_labels_say_what_is_not_as_in_most_groups():
    usual = {"batch_size": 128, "context": 64, "shuffle": True, "workers": 0}
    others = [{"batch_size": 64}, {"context": 32}, {"shuffle": False}, {"workers": 2, "context": 32}]
    runs = [run(scheme, config={"data": {**usual, **other}}) for scheme in ("lwpd", "ddp") for other in ({}, *others)]

    groups = group(runs)

    told = {"", " batch_size=64", " context=32", " shuffle=false", " context=32 workers=2"}
    assert {*labels(groups)} == {f"{scheme}{setting}" for scheme in ("lwpd", "ddp") for setting in told}
    assert unsaid({tuple(one.values.values()): one.runs[0] for one in groups}, list(groups[0].values)) == (
        "Where a group does not say otherwise: batch_size=128, context=64, shuffle=true, workers=0."
    )


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ((0.000176663862, 0.00203879297), ["lr=0.0001767", "lr=0.002039"]),
        ((0.123456789, 0.123456788), ["lr=0.123456788", "lr=0.123456789"]),
    ],
)
def test_numbers_have_as_few_digits_as_tell_them_apart(rates, shown):
    assert labels(group([run(config={"model": {"lr": rate}}) for rate in rates])) == shown


def test_an_object_is_called_by_its_class():
    killer = {"faults": {"_target_": "lwpd_lightning.injection.FaultInjector", "kills": {2: 100}}}

    assert labels(group([run(), run(config={"callbacks": killer})])) == ["faults=FaultInjector", "faults=unset"]


def test_of_few_settings_labels_say_all():
    groups = group([run(config={"data": {"batch_size": size}}) for size in (64, 128)])

    assert unsaid({tuple(one.values.values()): one.runs[0] for one in groups}, list(groups[0].values)) is None


def test_who_only_looks_on_and_what_a_sweeper_is_told_are_no_settings():
    watched = {"callbacks": {"live": {"every_s": 1}, "recent": {"every_s": 5}}, "optimized_metric": "val_acc"}
    other = {"callbacks": {"live": None, "recent": {"every_s": 60}}, "optimized_metric": "val_loss"}

    (together,) = group([run(seed=seed, config=config) for seed, config in enumerate((watched, other))])

    assert together.pooled == []


def test_a_group_of_the_configuration_is_called_by_the_word_that_chose_it():
    runs = [
        run(config={"straggler": SLOW, "choices": {"straggler": "one_slow"}}),
        run(config={"straggler": {}, "choices": {"straggler": "none"}}),
    ]

    assert labels(group(runs)) == ["straggler=one_slow", "straggler=none"]
    against, _ = baselines(group(runs), "straggler=none")
    assert against[0].label == "straggler=none"


def test_one_word_with_two_meanings_is_spelt_out():
    slower = {**SLOW, "slowdown": {1: 9.0}}
    runs = [run(config={"straggler": how, "choices": {"straggler": "one_slow"}}) for how in (SLOW, slower)]

    assert labels(group(runs)) == ["slowdown.1=5.0", "slowdown.1=9.0"]
    assert labels(group(runs, ["straggler"]))[0] == "straggler=StragglerInjector(slowdown={1: 5.0})"


def test_a_setting_that_older_runs_do_not_know_keeps_them_apart():
    runs = [run(seed=0), run(seed=1, config={"data": {"batch_size": 128, "shuffle": False}})]

    assert labels(group(runs)) == ["shuffle=false", "shuffle=unset"]


def test_keys_pool_what_they_do_not_name_and_say_so():
    runs = [run(scheme, 0, summary={"wait_for": k}) for scheme in ("lwpd", "k_async") for k in (5, 6)]

    groups = group(runs, ["scheme"])

    assert labels(groups) == ["lwpd", "k_async"]
    assert groups[0].pooled == ["wait_for"]


def test_what_a_run_says_of_itself_goes_before_what_was_configured():
    groups = group([run("lwpd"), run("ddp")], ["code.t"])

    assert [one.values["code.t"] for one in groups] == ["2", "none"]


def test_other_targets_are_never_pooled():
    bits = {"target": {"metric": "val_bpc", "mode": "min", "value": 3.5}}

    groups = group([run(), run(summary=bits)], ["scheme"])

    assert [one.metric for one in groups] == ["val_acc", "val_bpc"]


def test_a_key_of_no_run_is_refused():
    with pytest.raises(
        ValueError, match=r"^--group-by code.q has no value in any run's summary .*: use one of scheme, .*wait_for"
    ):
        group([run(), run("ddp")], ["code.q"])
