"""What a composed configuration shows without anything built: refused before torch and Lightning are imported."""

import re

import pytest

from experiments.choices import refuse_choices
from experiments.composed import refuse_composed
from experiments.models.classifier import mlp
from experiments.models.gpt import GPT
from experiments.summary import FIGURES
from experiments.targets import TargetTimer
from tests.experiments.before_torch import refused_before_torch
from tests.experiments.test_sizes import composed

SENTENCES = [
    ("ckpt_path=/nope.ckpt", "ckpt_path=/nope.ckpt is no file: use a run's checkpoints/last.ckpt or best.ckpt."),
    ("resume=yes", "resume=yes is unknown: use resume=auto, or leave it out."),
    ("data.batch_size=127", "data.batch_size=127 is not divisible by the code's 2 data parts: use a multiple of 2."),
    ("data.batch_size=0", "data.batch_size=0 is no number of samples: use a multiple of 2."),
    ("data.batch_size=many", "data.batch_size=many is no number of samples: use a multiple of 2."),
    ("data.val_share=1.5", "data.val_share=1.5 leaves one split empty: use a number between 0 and 1."),
    ("data.val_share=some", "data.val_share=some leaves one split empty: use a number between 0 and 1."),
    ("target.mode=up", "target.mode=up is unknown: use min or max."),
    ("target.value=high", "target.value=high is no number: use one in the metric's unit, such as 0.9."),
    ("target.value=null", "target.value=null is no number: use one in the metric's unit, such as 0.9."),
    ("logger.mode=sometimes", "logger.mode=sometimes is unknown: use one of offline, online, disabled."),
    ("straggler=trace", "straggler.model.path has no value: add straggler.model.path=... to the command."),
    ("model.hidden=[0]", "model.hidden=[0] is no size of a model: use whole numbers of 1 or more."),
    ("model.hidden=[16,x]", "model.hidden=[16, x] is no size of a model: use whole numbers of 1 or more."),
    ("model.label_smoothing=2", "model.label_smoothing=2 is no share: use a number from 0 to below 1."),
    ("model.optimizer.lr=fast", "model.optimizer.lr=fast is no learning rate: use a number above 0, such as 0.001."),
    ("model.optimizer.lr=-0.1", "model.optimizer.lr=-0.1 is no learning rate: use a number above 0, such as 0.001."),
    ("trainer.max_steps=0", "trainer.max_steps=0 is no length of a run: use 1 or more, or -1 for no limit."),
    ("trainer.max_epochs=many", "trainer.max_epochs=many is no length of a run: use 1 or more, or -1 for no limit."),
    ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 is no number of batches: use 1 or more, a share "
     "such as 0.5, or null for all."),
    ("trainer.limit_val_batches=2.5", "trainer.limit_val_batches=2.5 is no number of batches: use 1 or more, a share "
     "such as 0.5, or null for all."),
    ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 is no number of epochs: use 1 or more."),
    ("trainer.gradient_clip_val=x", "trainer.gradient_clip_val=x is no bound: use a number above 0, or null."),
    ("data.split_seed=x", "data.split_seed=x is no seed: use a whole number of 0 or more."),
    ("tags=fast", "tags=fast is no list: use tags=[fast]."),
    ("optimized_metric=foo", f"optimized_metric=foo is no figure of summary.json: use one of {', '.join(FIGURES)}."),
    ("callbacks.recent.every_s=often", "callbacks.recent.every_s=often is no duration: use seconds."),
    ("code.n=0", "code.n=0 is no number of workers: use 1 or more, or a size whole, code=lwpd_8_4_2."),
]  # fmt: skip


@pytest.mark.parametrize(("override", "sentence"), SENTENCES)
def test_a_setting_is_refused_as_it_was_typed(override, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        refuse_composed(composed(override))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["scheme=powersgd", "code.n=0"], "code.n=0 is no number of workers: use 1 or more, or a size whole"),
        (
            ["scheme=ddp", "data.batch_size=100"],
            "data.batch_size=100 is not divisible by the 8 ranks: use a multiple of",
        ),
        (
            ["model=gpt", "data=stdlib_text", "model.layers=0"],
            "model.layers=0 is no size of a model: use a whole number",
        ),
        (["model=cnn", "model.channels=[32,-1]"], "model.channels=[32, -1] is no size of a model: use whole numbers"),
    ],
)
def test_of_every_scheme_and_model(overrides, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        refuse_composed(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["logger=csv"],
        ["logger.mode=null"],
        ["model=transformer", "data=lines"],
        ["model._target_=at_home.model", "model.hidden=null"],
        ["trainer.max_epochs=null", "trainer.max_steps=5", "trainer.limit_val_batches=0.5"],
        ["callbacks=race", "straggler=trace", "straggler.model.path=delays.csv"],
        ["target.value=1", "target.metric=val_f1", "optimized_metric=bytes_up"],
    ],
)
def test_what_can_work_is_let_through(overrides):
    refuse_composed(composed(*overrides))


def test_who_is_made_of_a_setting_refuses_it_in_the_same_words():
    with pytest.raises(ValueError, match=r"^model.hidden=\[0\] is no size"):
        mlp([1, 8, 8], [0], 10)
    with pytest.raises(ValueError, match=r"^model.width=0 is no size"):
        GPT(128, 16, layers=1, width=0, heads=2)
    with pytest.raises(ValueError, match=r"^target.value=high is no number"):
        TargetTimer("val_acc", "high", "max")


@pytest.mark.parametrize(
    ("word", "unknown"),
    [("scheme=_exchange", "scheme=_exchange"), ("code=lwpd_9", "code=lwpd_9"), ("scheme=lwpd,foo", "scheme=foo")],
)
def test_a_choice_that_a_group_does_not_have_is_one_sentence(word, unknown):
    sentence = refuse_choices(["seed=1", word])

    assert sentence.startswith(f"{unknown} is unknown: use one of ")
    assert refuse_choices(["--config-dir=mine", word]) is None  # there it may be


@pytest.mark.parametrize(
    "word", ["scheme=lwpd", "experiment=null", "code=lwpd_8_4_2,lwpd_4_2_1", "code.n=9", "tags=[a]"]
)
def test_words_that_choose_what_there_is_are_hydras_to_read(word):
    assert refuse_choices([word]) is None


def test_it_is_asked_before_anything_is_imported_that_takes_seconds(tmp_path):
    said = refused_before_torch("ckpt_path=/nope.ckpt", f"hydra.run.dir={tmp_path}/run")

    assert said == "ckpt_path=/nope.ckpt is no file: use a run's checkpoints/last.ckpt or best.ckpt.\n"
