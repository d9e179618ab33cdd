"""LightningCLI as it is: a code is given on the command line, or in a file, by the function that makes it."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.cli import LightningCLI

from lwpd_lightning import gradient_code, lwpd_code, uncoded
from tests.integration.models import Classifier, loader, sgd


class Model(Classifier):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(sgd, seed=seed)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


def cli(tmp_path, *words, run=True):
    quiet = ["logger=false", "enable_checkpointing=false", "enable_progress_bar=false", "enable_model_summary=false"]
    trainer = [f"--trainer.{setting}" for setting in ("accelerator=cpu", f"default_root_dir={tmp_path}", *quiet)]
    return LightningCLI(Model, Data, args=["fit"] * run + trainer + [*words], run=run)


def test_a_code_on_the_command_line(tmp_path):
    words = ["class_path=lwpd_lightning.LWPDStrategy", "init_args.wait_for=4"]
    code = ["class_path=lwpd_lightning.lwpd_code", "init_args.n=4", "init_args.k=4", "init_args.t=2"]
    words += [f"init_args.code.{word}" for word in code]
    done = cli(tmp_path, "--trainer.devices=4", "--trainer.max_steps=3", *(f"--trainer.strategy.{w}" for w in words))
    assert repr(done.trainer.strategy.code) == repr(lwpd_code(4, 4, 2))
    assert done.trainer.global_step == 3
    assert len(done.trainer.strategy.last_update.arrivals) == 4
    saved, elsewhere = tmp_path / "config.yaml", tmp_path / "again"
    again = cli(tmp_path, f"--config={saved}", f"--trainer.default_root_dir={elsewhere}")
    assert repr(again.trainer.strategy.code) == repr(lwpd_code(4, 4, 2))
    for first, second in zip(done.model.parameters(), again.model.parameters(), strict=True):
        assert first.equal(second)


@pytest.mark.parametrize(
    ("words", "code", "settings"),
    [
        (["=lwpd_lightning.uncoded", ".n=4"], uncoded(4), ["wait_for=3", "max_staleness=2"]),
        (["=lwpd_lightning.uncoded", ".n=4"], uncoded(4), ["wait_for=adaptive", "wait_for_bounds=[2,3]"]),
        (
            ["=lwpd_lightning.gradient_code", ".n=4", ".stragglers=1", ".repetition=fractional"],
            gradient_code(4, 1, "fractional"),
            ["decoder=exact", "stale=drop", "wait_for=3"],
        ),
        ([], lwpd_code(4, 4, 2), ["wait_for=3"]),
    ],
    ids=["late", "adaptive", "exact", "default"],
)
def test_codes_and_settings_in_short(tmp_path, words, code, settings):
    words = [f"code{word}" for word in words] + settings
    words = [f"--trainer.strategy.{word}" for word in words]
    made = cli(tmp_path, "--trainer.strategy=lwpd_lightning.LWPDStrategy", "--trainer.devices=4", *words, run=False)
    assert repr(made.trainer.strategy.code) == repr(code)
    assert made.trainer.strategy.code.generator.equal(code.generator)
    for setting in settings:
        name, value = setting.split("=")
        assert str(getattr(made.trainer.strategy.settings, name)).strip("()").replace(" ", "") == value.strip("[]")


def test_a_setting_that_cannot_work_is_refused_in_our_words(tmp_path, capsys):
    words = ["=lwpd_lightning.LWPDStrategy", ".code=lwpd_lightning.uncoded", ".code.n=4", ".wait_for=5"]
    with pytest.raises((ValueError, SystemExit)) as refused:
        cli(tmp_path, *(f"--trainer.strategy{word}" for word in words), run=False)
    assert "wait_for=5 is outside 1..4" in str(refused.value) + capsys.readouterr().err
