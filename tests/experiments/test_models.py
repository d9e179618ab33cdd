"""Shapes, causality, initial losses and the learning-rate schedule of the experiments' models."""

import math
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy

from experiments.data import Digits
from experiments.models import cnn_classifier, gpt_language_model, mlp_classifier, warmup_cosine
from experiments.models.gpt import GPT

ADAM = partial(torch.optim.Adam, lr=0.01)


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mlp_has_the_layers_that_were_asked_for():
    model = mlp_classifier(shape=[1, 8, 8], hidden=[1024, 1024], classes=10, optimizer=ADAM)

    assert count(model) == (64 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 10
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [([1, 8, 8], [3]), ([1, 8, 8], [3, 5, 7]), ([1, 28, 28], [3, 5, 7, 9]), ([3, 32, 32], [3, 5]), ([2, 5, 9], [3, 4])],
)
def test_cnn_maps_images_to_classes(shape, channels):
    model = cnn_classifier(shape, channels, hidden=6, classes=10, optimizer=ADAM)

    assert model(torch.zeros(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize(("shape", "most"), [([1, 8, 8], 3), ([1, 28, 28], 4), ([3, 32, 32], 5)])
def test_a_cnn_that_pools_its_image_away_is_refused(shape, most):
    cnn_classifier(shape, [2] * most, hidden=6, classes=10, optimizer=ADAM)

    with pytest.raises(ValueError, match=f"images: use 1 to {most} convolutions"):
        cnn_classifier(shape, [2] * (most + 1), hidden=6, classes=10, optimizer=ADAM)


def test_gpt_sees_the_past_only():
    torch.manual_seed(0)
    net = GPT(vocabulary=16, context=8, layers=2, width=12, heads=3).eval()
    tokens = torch.randint(16, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 16

    before, after = net(tokens), net(changed)

    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_gpt_starts_at_the_loss_of_a_uniform_guess():
    torch.manual_seed(0)
    model = gpt_language_model(vocabulary=128, context=32, layers=2, width=64, heads=4, optimizer=ADAM)
    tokens = torch.randint(128, (4, 33))

    loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    assert abs(loss.item() - math.log(128)) < 0.1


def test_gpt_takes_inputs_shorter_than_its_context_and_has_a_tied_output():
    net = GPT(vocabulary=128, context=128, layers=4, width=128, heads=4)

    assert net(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 128)
    assert count(net) == 128 * 128 * 2 + 2 * 128 + 4 * (12 * 128**2 + 13 * 128)


def test_schedule_rises_to_the_peak_and_ends_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = warmup_cosine(optimizer, total_steps=100, warmup_share=0.1)

    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()

    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.05
    assert rates[10] == max(rates) == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_endless_training_with_a_schedule_is_refused(tmp_path):
    model = mlp_classifier([1, 8, 8], [8], 10, ADAM, schedule=warmup_cosine)
    trainer = Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )

    with pytest.raises(ValueError, match=r"give model.schedule no end"):
        trainer.fit(model, datamodule=Digits(128))


def test_classifier_learns_and_reports_the_accuracy_that_a_count_gives(tmp_path):
    torch.manual_seed(0)
    data = Digits(128)
    model = mlp_classifier([1, 8, 8], [64], 10, ADAM, schedule=warmup_cosine, label_smoothing=0.1)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip

    trainer.fit(model, datamodule=data)

    images, labels = data.splits[1].tensors
    with torch.no_grad():
        logits = model.eval()(images)
    assert trainer.callback_metrics["val_acc"].item() == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert trainer.callback_metrics["val_acc"] > 0.8
