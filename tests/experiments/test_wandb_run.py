"""What an offline W&B run holds, read back with W&B's own tool."""

import functools
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.wandb_run import refuse_uploads
from tests.experiments.offline_runs import records, series
from tests.experiments.test_train_command import ROOT, train

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow
RUN = ("code=lwpd_4_2_2", "model.hidden=[16]", "trainer.limit_train_batches=3", "tags=[mine]", "task_name=reading")
EXCHANGE = (
    "loss", "lr", "wait_s", "compute_s", "update_s", "bytes_up", "bytes_down", "arrivals", "dropped", "live",
    "decoded_share", "staleness_mean", "wait_for", "resyncs",
)  # fmt: skip
PER_WORKER = ("arrived", "staleness", "inclusion")


@functools.cache
def only_record_of(directory: Path) -> dict[str, list]:
    (run,) = directory.glob("wandb/offline-run-*")
    return records(run)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wandb")
    # Rank 0 steps with other gradients than were decoded, so that workers end elsewhere and take over its state.
    halves = "+callbacks.halves._target_=tests.integration.test_replicas.HalveGradients"
    # As logger.log_model=true does online.
    uploads = "logger.wandb.log_model=true"
    done = train(directory, *RUN, "trainer.max_epochs=2", "hydra.run.dir=first", halves, uploads)
    assert done.returncode == 0, done.stderr
    return directory / "first"


def test_every_series_is_there_for_every_update_and_worker(first):
    logged = series(only_record_of(first))

    for name in (*EXCHANGE, *(f"{kind}/{worker}" for kind in PER_WORKER for worker in range(4))):
        assert [update for update, _ in logged[f"exchange/{name}"]] == [1, 2, 3, 4, 5, 6], name
    assert len(logged["train_loss"]) == 6
    assert len(logged["val_acc"]) == len(logged["val_loss"]) == 3  # two epochs, and the finished model
    for worker in range(4):
        arrived = [value for _, value in logged[f"exchange/arrived/{worker}"]]
        inclusion = logged[f"exchange/inclusion/{worker}"][-1][1]
        assert inclusion == pytest.approx(sum(arrived) / 6)
    assert [value for _, value in logged["exchange/wait_for"]] == [3] * 6
    resyncs = [value for _, value in logged["exchange/resyncs"]]
    assert sum(resyncs) == json.loads((first / "summary.json").read_text())["resyncs"] > 0
    assert resyncs[0] == 0


def test_the_run_says_what_it_is(first):
    found = only_record_of(first)
    (run,), summary = found["run"], json.loads((first / "summary.json").read_text())

    assert (run["run_group"], run["job_type"], run["project"]) == ("reading", "lwpd", "lwpd-lightning")
    assert run["tags"] == ["lwpd", "lwpd(4,2,2)", "mine"]
    assert run["display_name"] == "lwpd lwpd(4,2,2) seed 0"
    config = {name: value for record in found["config"] for name, value in record["update"].items()}
    assert config["scheme"]["strategy"]["wait_for"] == config["code"]["wait_for"] == 3  # resolved
    assert config["data"]["facts"]["sha256"] == summary["data"]["sha256"]
    assert config["git_revision"] == summary["git_revision"]
    assert config["versions"] == summary["versions"]
    assert {"python", "torch", "lightning", "wandb"} <= config["versions"].keys()
    assert found["exit"][-1]["exit_code"] == 0


def test_metrics_have_a_goal_and_the_update_as_their_axis(first):
    metrics = {metric.get("name") or metric["glob_name"]: metric for metric in only_record_of(first)["metric"]}

    assert metrics["val_acc"]["summary"] == {"max": True}
    assert metrics["val_loss"]["summary"] == metrics["train_loss"]["summary"] == {"min": True}
    assert "val_bpc" not in metrics  # which digits have not
    assert metrics["exchange/*"]["step_metric"] == metrics["val_acc"]["step_metric"] == "trainer/global_step"


def test_the_summarys_figures_and_the_pictures_are_in_the_run(first):
    found, summary = only_record_of(first), json.loads((first / "summary.json").read_text())
    kept = {name: value for record in found["summary"] for name, value in record["update"].items()}

    for name in ("val_acc", "bytes_up", "staleness_mean", "resyncs", "wall_s", "updates", "world_size"):
        assert kept[f"result/{name}"] == pytest.approx(summary[name])
    files = [file["path"] for record in found["files"] for file in record["files"]]
    (run,) = first.glob("wandb/offline-run-*")
    for picture in ("learning_curve", "arrivals", "code"):
        (path,) = (path for path in files if picture in path)
        assert (run / "files" / path).read_bytes() == (first / f"{picture}.png").read_bytes()
        assert (first / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_checkpoint_is_an_artefact(first):
    found = only_record_of(first)
    (artefact,) = (record for record in found["artifact"])

    assert (artefact["name"], artefact["type"]) == (f"model-{found['run'][0]['run_id']}", "model")
    assert {"latest", "best"} == set(artefact["aliases"])
    assert "best.ckpt" in json.dumps(artefact)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("true",),
            r"logger.log_model=true uploads checkpoints as the run goes, and logger.mode=offline does not: use",
        ),
        (("all", "logger.mode=disabled"), r"logger.log_model=all uploads .* and logger.mode=disabled does not: use"),
        (("best",), r"logger.log_model=best is unknown: use true, all or false."),
        (("true", "logger.mode=online", "callbacks.checkpoint=null"), r"uploads what callbacks.checkpoint keeps, and"),
    ],
)
def test_checkpoints_that_cannot_be_uploaded_are_refused(settings, sentence):
    value, *others = settings
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"logger.log_model={value}", *others])

    with pytest.raises(ValueError, match=sentence):
        refuse_uploads(cfg)


def test_a_continued_run_is_the_same_wandb_run(first):
    done = train(
        first.parent, *RUN, "trainer.max_epochs=3", "hydra.run.dir=second", "ckpt_path=first/checkpoints/last.ckpt"
    )
    assert done.returncode == 0, done.stderr

    before, after = only_record_of(first), only_record_of(first.parent / "second")

    assert after["run"][0]["run_id"] == before["run"][0]["run_id"]
    assert after["run"][0]["resume"] is True
    assert [update for update, _ in series(after)["exchange/loss"]] == [7, 8, 9]
