"""The clock stops at the first validation that reaches the target, and only there."""

import csv

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from experiments.targets import TargetTimer


class Scripted(LightningModule):
    """Logs one given value of `score` at each validation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores = iter(scores)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("score", next(self.scores))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(timer: TargetTimer, scores: list[float], tmp_path, **settings) -> Trainer:
    trainer = Trainer(
        max_epochs=len(scores), accelerator="cpu", callbacks=[timer], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        **{"logger": False, **settings},
    )  # fmt: skip
    model = Scripted([*scores, 1e9])
    trainer.fit(model, DataLoader(torch.ones(1)), DataLoader(torch.ones(1)))
    trainer.validate(model, DataLoader(torch.ones(1)), verbose=False)
    return trainer


@pytest.mark.parametrize(
    ("mode", "scores", "best"), [("max", [0.1, 0.5, 0.9, 0.4], 0.9), ("min", [0.9, 0.5, 0.1, 0.6], 0.1)]
)
def test_best_is_kept_and_the_target_counts_when_met_exactly(tmp_path, mode, scores, best):
    timer = TargetTimer("score", 0.5, mode)

    fit(timer, scores, tmp_path)

    assert timer.best == pytest.approx(best)  # not 1e9, which validation after fit logged
    assert timer.reached_s > 0


@pytest.mark.parametrize(("mode", "scores"), [("max", [0.1, 0.2]), ("min", [0.9, 0.8])])
def test_a_target_that_was_missed_has_no_time(tmp_path, mode, scores):
    timer = TargetTimer("score", 0.5, mode)

    fit(timer, scores, tmp_path)

    assert timer.reached_s is None


def test_the_first_time_stays(tmp_path):
    times = []

    class Watching(TargetTimer):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            times.append(self.reached_s)

    fit(Watching("score", 0.5, "max"), [0.1, 0.6, 0.2, 0.7], tmp_path)

    assert times[0] is None
    assert times[1] is not None
    assert set(times[1:]) == {times[1]}


def test_the_wall_time_of_every_validation_is_logged_beside_its_metric(tmp_path):
    timer = TargetTimer("score", 0.5, "max")
    logger = CSVLogger(tmp_path, name="", version="")

    fit(timer, [0.1, 0.6, 0.7], tmp_path, logger=logger)
    logger.save()

    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [(row["score"], row["step"], row["val_wall_s"]) for row in csv.DictReader(file)]
    clock = [(step, float(wall)) for _, step, wall in rows if wall]
    assert [bool(score) for score, _, _ in rows] == [True, False] * 3 + [True]  # validation after fit has no wall time
    assert [step for step, _ in clock] == ["1", "2", "3"]
    assert [wall for _, wall in clock] == sorted(wall for _, wall in clock)
    assert clock[1][1] == timer.reached_s


def continued(timer, after, scores, checkpoint, tmp_path):
    trainer = Trainer(
        max_epochs=after + len(scores), accelerator="cpu", callbacks=[timer], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        logger=CSVLogger(tmp_path, name="", version=""),
    )  # fmt: skip
    trainer.fit(Scripted(scores), DataLoader(torch.ones(1)), DataLoader(torch.ones(1)), ckpt_path=checkpoint)


def test_a_continued_fit_goes_on_with_the_clock_of_its_checkpoint(tmp_path):
    first, second = (TargetTimer("score", 0.5, "max") for _ in range(2))
    trainer = fit(first, [0.1, 0.6], tmp_path)
    first._started -= 100.0
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    continued(second, 2, [0.2], tmp_path / "last.ckpt", tmp_path)

    assert (second.reached_s, second.best) == (first.reached_s, first.best)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (wall,) = (float(row["val_wall_s"]) for row in csv.DictReader(file) if row["val_wall_s"])
    assert 100.0 < wall < 200.0


def test_another_target_is_reached_anew(tmp_path):
    trainer = fit(TargetTimer("score", 0.5, "max"), [0.6], tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    higher = TargetTimer("score", 0.9, "max")

    continued(higher, 1, [0.2], tmp_path / "last.ckpt", tmp_path)

    assert higher.reached_s is None


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"target.mode=best is unknown: use min or max."):
        TargetTimer("score", 0.5, "best")


def test_a_metric_that_is_not_logged_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"target.metric=accuracy is not logged by the model: use one of score."):
        fit(TargetTimer("accuracy", 0.5, "max"), [0.1], tmp_path)
