"""Every scheme has a name in Python, and what a user gives goes before what a scheme chooses."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from lwpd_lightning import Code, LWPDStrategy, schemes
from tests.integration.models import Classifier, classification, loader, quiet_trainer, sgd

CONF = Path(__file__).parents[1] / "conf/scheme"
OFFERED = sorted(
    name for name, made in vars(schemes).items() if inspect.isfunction(made) and made.__module__ == schemes.__name__
)
NEEDS = {
    **{name: {"k": 4, "t": 2} for name in ("lwpd", "local")},
    **{name: {"wait_for": 6} for name in ("gradient_coding", "k_sync", "k_async", "k_async_int8")},
}
CHOICES = [
    (name, setting.name, setting.default)
    for name in OFFERED
    for setting in inspect.signature(getattr(schemes, name)).parameters.values()
    if setting.kind is inspect.Parameter.KEYWORD_ONLY
]


def made(name: str, **options) -> LWPDStrategy:
    return getattr(schemes, name)(8, **NEEDS.get(name, {}), **options)


def test_every_scheme_of_the_package_is_called_by_the_file_of_its_name_and_no_other():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    called = {name: target for name, file in files.items() if "peers" not in (target := file["strategy"]["_target_"])}

    assert called == {name: f"lwpd_lightning.schemes.{name}" for name in OFFERED}
    assert len(OFFERED) == 9


def test_the_manual_lists_every_scheme():
    page = (CONF.parents[1] / "docs/schemes.md").read_text()
    listed = page[page.index("## What is each scheme?") : page.index("## What should wait_for be?")]

    assert [path.stem for path in CONF.glob("*.yaml") if f"`{path.stem}`" not in listed and path.stem != "alone"] == []


@pytest.mark.parametrize("name", OFFERED)
def test_a_scheme_is_a_strategy_for_n_workers(name):
    strategy = made(name, heartbeat_s=2.0, min_workers=7)

    assert strategy.code.n == 8
    assert (strategy.settings.heartbeat_s, strategy.settings.min_workers) == (2.0, 7)
    assert strategy.settings.wait_for == NEEDS.get(name, {}).get("wait_for")


@pytest.mark.parametrize(("name", "setting", "chosen"), CHOICES)
def test_what_a_scheme_chooses_is_its_default(name, setting, chosen):
    assert getattr(made(name).settings, setting) == chosen


@pytest.mark.parametrize("name", ["lwpd", "local", "whitened"])
def test_what_is_for_slow_links_is_coarse_both_ways_and_exact_in_one_word(name):
    def exchanged(**given):
        settings = made(name, **given).settings
        return settings.stale, settings.wire_dtype, settings.update_dtype

    assert exchanged() == ("drop", "ternary", "ternary")
    assert exchanged(compressor="plain") == ("apply", None, None)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("lwpd", {"compressor": "plain", "stale": "apply", "wire_dtype": None, "update_dtype": None}),
        ("local", {"wire_dtype": "sign", "update_dtype": "float32"}),
        ("sketch", {"update_dtype": None}),
        ("sketch", {"wire_dtype": "int8", "update_dtype": "int8", "error_feedback": True, "stale": "apply"}),
        ("gradient_coding", {"decoder": "least_squares"}),
        ("k_sync", {"stale": "apply"}),
        ("k_async_int8", {"update_dtype": "bfloat16", "stale": "drop"}),
        ("sync", {"wait_for": 5}),
    ],
)
def test_what_is_given_goes_before_it(name, given):
    settings = made(name, **given).settings

    assert {setting: getattr(settings, setting) for setting in given} == given


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: schemes.sketch(8, error_feedback=False), "'ternary' with error_feedback=False"),
        (lambda: schemes.local(8, k=4, t=3), "t=3 does not divide k=4: use t in 1, 2, 4"),
        (lambda: schemes.local(4, k=8, t=2), "n=4, k=8, t=2 leaves one worker a data part, which is a sketch"),
        (lambda: schemes.lwpd(8, k=3, t=1), "k=3 does not divide n=8"),
        (lambda: schemes.gradient_coding(8, wait_for=9), r"wait_for=9 is outside 1\.\.8"),
        (lambda: schemes.gradient_coding(8, "adaptive"), "wait_for='adaptive': a gradient code is made for one K"),
        (lambda: schemes.gradient_coding(8, 6, stale="apply"), "stale='apply' with decoder='exact'"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(TypeError, match="wait_four"):
        schemes.sync(8, wait_four=6)


def mirrored(n: int) -> Code:
    return Code(torch.eye(n // 2, dtype=torch.float64).repeat(2, 1), data_parts=n // 2, blocks=1, family="mirrored")


@pytest.mark.parametrize("make", [lambda: schemes.sketch(4), lambda: LWPDStrategy(mirrored(4), wait_for=3)])
def test_a_scheme_and_a_code_of_ones_own_train(make):
    trainer = quiet_trainer(devices=4, strategy=make(), max_steps=3)

    trainer.fit(Classifier(sgd), loader(classification()))

    assert trainer.global_step == 3
