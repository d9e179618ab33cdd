"""Words on the command line that cannot be: no traceback, and the sentence names them as typed."""

import re
import sys

import pytest

from tests.commands import run
from tests.experiments.test_train_command import ROOT, train

FULL = {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"}


@pytest.mark.parametrize("words", [("hydra.run.dir=taken/run",), ("-m", "hydra.sweep.dir=taken/run", "seed=0,1")])
def test_a_directory_that_cannot_be_written_to_is_one_sentence(tmp_path, words):
    (tmp_path / "taken").write_text("a file")

    done = train(tmp_path, *words, "logger=csv")

    assert done.returncode == 1
    (setting,) = (word for word in words if word.startswith("hydra."))
    assert done.stderr == f"{setting} cannot be written to (Not a directory): use a directory that can.\n"


@pytest.mark.slow
def test_what_schemes_are_made_of_is_no_scheme(tmp_path):
    offered, refused = train(tmp_path, "--help"), train(tmp_path, "scheme=_exchange")

    (schemes,) = (line for line in offered.stdout.splitlines() if line.startswith("scheme: "))
    assert "lwpd" in schemes
    assert "exchange" not in schemes
    assert refused.returncode == 1
    assert refused.stderr.startswith("scheme=_exchange is unknown: use one of alone, ddp, ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["logger.mode=sometimes"], "logger.mode=sometimes is unknown: use one of offline, online, disabled.\n"),
        (["+logger.wandb.settings.x_graphql_timeout_seconds=soon"],
         "logger.wandb.settings.x_graphql_timeout_seconds=soon: Input should be a valid number, .*\n"),
        (["straggler=trace"], "straggler.model.path has no value: add straggler.model.path=... to the command.\n"),
        (["target.value=high"], "target.value=high is no number: use one in the metric's unit, such as 0.9.\n"),
        (["target.metric=accuracy"],
         "target.metric=accuracy is not logged by the model: use one of train_loss, val_loss, val_acc.\n"),
        (["straggler=one_slow", "+straggler.model.slowdown={9: 10.0}"],
         "straggler.model.slowdown names worker 9, but the run has workers 0 to 7.\n"),
        (["scheme.strategy.min_workers=20"],
         "scheme.strategy.min_workers=20 is outside 1..8: the code has n=8 workers, use 1 to 8.\n"),
        (["restarts=-1"], "restarts=-1 is no number of restarts: use 0, 1, 2 or more.\n"),
        (["sweep.resume=maybe"], "sweep.resume=maybe is unknown: use true or false.\n"),
        (["-m", "seed=0,1", "sweep.resume=maybe"], "sweep.resume=maybe is unknown: use true or false.\n"),
        (["sweep.resume=true"], "sweep.resume=true continues a sweep, and this is a single run: add -m.\n"),
        (["resume=auto"],
         "resume=auto needs a directory that is the same each time: add hydra.run.dir=outputs/mine.\n"),
    ],
)  # fmt: skip
def test_a_refusal_is_its_sentence_and_nothing_else(tmp_path, words, sentence):
    done = train(tmp_path, *words)

    assert done.returncode == 1
    assert re.fullmatch(sentence.replace(".", r"\.").replace(r"\.*", ".*"), done.stderr), done.stderr


def test_a_refusal_of_hydras_own_and_a_full_error_are_as_hydra_shows_them(tmp_path):
    hydras = train(tmp_path, "sede=3")
    whole = run([sys.executable, "-m", "experiments.train", "seed=abc"], cwd=tmp_path, env=FULL)

    assert hydras.stderr.startswith("Could not override 'sede'.")
    assert "Traceback" in whole.stderr
    assert "seed=abc is no seed" in whole.stderr


def test_a_metric_that_a_users_own_model_does_not_log_is_said_alone_once_it_has_validated(tmp_path):
    (tmp_path / "at_home.py").write_text(
        "from experiments.models import mlp_classifier\n"
        "from experiments.models.classifier import Classifier\n"
        "class Mine(Classifier):\n    pass\n"
        "def mine(**given):\n"
        "    model = mlp_classifier(**given)\n"
        "    model.__class__ = Mine\n"
        "    return model\n"
    )
    words = ["model._target_=at_home.mine", "target.metric=accuracy", "code=lwpd_4_2_2", "trainer.max_epochs=1"]
    command = [sys.executable, "-m", "experiments.train", *words, "logger=csv", "trainer.limit_train_batches=2"]

    done = run(command, cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})

    assert done.returncode == 1
    assert "target.metric=accuracy is not logged by the model: use one of " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
