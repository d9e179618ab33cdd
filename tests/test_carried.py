"""What training_step carries from one batch to the next is found, and what it only keeps is not."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchmetrics import MeanMetric

from lwpd_lightning import LWPDStrategy, gradient_code, lwpd_code, uncoded
from lwpd_lightning.carried import Carried
from lwpd_lightning.exchange.update import WorkerFailed
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

SENTENCE = (
    r"^training_step carries self\.{} from one batch to the next, and worker \d computes data parts \[.*\] of every"
)


class Recurrent(nn.Module):
    """Its steps are functions of the module and a batch."""

    def __init__(self, keeps):
        super().__init__()
        self.lstm, self.metric = nn.LSTM(3, 4), MeanMetric()
        self.keeps, self.kept, self.records = keeps, None, []

    def training_step(self, x):
        output, state = self.lstm(x, self.kept if self.keeps == "state" else None)
        self.metric.update(output.mean())
        self.records.append(output.mean())
        if self.keeps == "state":
            self.kept = tuple(part.detach() for part in state)
        elif self.keeps == "average":
            mean = output.detach().mean()
            self.lstm.average = mean if not hasattr(self.lstm, "average") else 0.9 * self.lstm.average + 0.1 * mean
        elif self.keeps == "output":
            self.kept = output.detach()
        return output.mean()


def run(model, code, worker, steps=6, reset=()):
    carried = Carried(model, code)
    for step in range(steps):
        if step in reset:
            model.kept = None
        for _ in code.parts(worker):
            with carried.watched():
                model.training_step(torch.randn(5, 2, 3))


@pytest.mark.parametrize("code", [gradient_code(4, stragglers=1), lwpd_code(8, 4, 2)], ids=["gradient", "lwpd"])
@pytest.mark.parametrize(("keeps", "name"), [("state", "kept"), ("average", r"lstm\.average")])
def test_what_the_next_batch_reads_is_refused_where_a_worker_has_several_parts(code, keeps, name):
    for worker in range(code.n):
        with pytest.raises(MisconfigurationException, match=SENTENCE.format(name)):
            run(Recurrent(keeps), code, worker)


def test_a_state_that_was_forgotten_once_is_still_found():
    with pytest.raises(MisconfigurationException, match="kept"):
        run(Recurrent("state"), lwpd_code(8, 4, 2), 0, reset={1})


@pytest.mark.parametrize("keeps", ["nothing", "output"])
def test_what_is_only_shown_is_not(keeps):
    run(Recurrent(keeps), lwpd_code(8, 4, 2), 1)


def test_where_every_worker_has_one_part_a_state_is_its_own():
    run(Recurrent("state"), uncoded(4), 2)


def test_nothing_is_kept_when_the_watch_is_over():
    model = Recurrent("output")
    carried = Carried(model, lwpd_code(8, 4, 2))
    for _ in range(6):
        with carried.watched():
            model.training_step(torch.randn(5, 2, 3))
    assert not carried._left


class _Carrying(Classifier):
    shift = None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.shift is not None:
            loss = loss * (1 + self.shift)
        self.shift = loss.detach()
        return loss


def test_a_fit_ends_with_the_sentence():
    strategy = LWPDStrategy(code=lwpd_code(8, 4, 2))
    trainer = quiet_trainer(devices=8, strategy=strategy, max_steps=5)
    with pytest.raises((MisconfigurationException, WorkerFailed), match=r"training_step carries self\.shift"):
        trainer.fit(_Carrying(sgd), loader())
