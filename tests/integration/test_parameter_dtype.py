"""Parameters that travel rounded: every version afresh from rank 0's, so that nothing drifts."""

import pytest
import torch

from lwpd_lightning import LWPDStrategy, uncoded
from lwpd_lightning.callbacks import WorkerCallback
from lwpd_lightning.coding.wire import wire_format
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

UPDATES = 25


class Seen(WorkerCallback):
    """What each worker computes at, version by version, in memory that forked workers share."""

    def __init__(self, model, workers):
        size = sum(p.numel() for p in model.parameters())
        self.parameters = torch.zeros(UPDATES, workers, size).share_memory_()
        self.statistics = torch.zeros(UPDATES, workers, 12).share_memory_()

    def on_codeword_start(self, trainer, worker, version):
        module = trainer.lightning_module
        with torch.no_grad():
            self.parameters[version, worker] = torch.cat([p.flatten() for p in module.parameters()])
            self.statistics[version, worker] = module.net[0].running_mean


class Normalised(Classifier):
    def __init__(self):
        super().__init__(sgd)
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(12), *self.net)


def rounded(model, flat, name):
    wire = wire_format(name)
    pieces = flat.split([p.numel() for p in model.parameters()])
    return torch.cat([wire.unpack(wire.pack(piece), piece.numel()).float() for piece in pieces])


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_workers_are_one_rounding_from_rank_0_at_every_version(name):
    model = Normalised()
    seen = Seen(model, 3)
    strategy = LWPDStrategy(code=uncoded(3), parameter_dtype=name)
    trainer = quiet_trainer(devices=3, strategy=strategy, max_steps=UPDATES, max_epochs=-1, callbacks=[seen])
    trainer.fit(model, loader(shuffle=True))
    first, last = seen.parameters[0, 0], seen.parameters[-1, 0]
    assert (last - first).norm() > 0.1 * first.norm()
    for version in range(UPDATES):
        truth = seen.parameters[version, 0]
        expected = rounded(model, truth, name)
        assert torch.equal(expected, truth) == (name == "float32")
        for worker in (1, 2):
            assert torch.equal(seen.parameters[version, worker], expected)
            assert torch.equal(seen.statistics[version, worker], seen.statistics[version, 0])
    assert seen.statistics[-1, 0].norm() > 0
