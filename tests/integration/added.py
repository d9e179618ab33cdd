"""A wire format and a compressor that the package does not know, and a job that trains with them."""

import argparse
import sys
from pathlib import Path

import torch

from lwpd_lightning import LWPDStrategy, lwpd_code
from lwpd_lightning.coding.compressor import COMPRESSORS, Compressor
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.sender import PlainSender
from lwpd_lightning.coding.wire import WireFormat, register
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

UPDATES = 6
# By name what is added to a strategy that is told nothing else.
ADDED = {
    "plain": {},
    "format": {"wire_dtype": "float16", "update_dtype": "float16"},
    "fed back": {"wire_dtype": "float16", "error_feedback": True},
    "compressor": {"compressor": "flipped", "stale": "drop"},
    "both": {"compressor": "flipped", "stale": "drop", "wire_dtype": "float16"},
}


class Float16(WireFormat):
    """Values as torch.float16."""

    name = "float16"

    def nbytes(self, size):
        return 2 * size

    def pack(self, codeword):
        return codeword.detach().to(torch.float16).contiguous().view(torch.uint8)

    def cut(self, payload, size, start, stop):
        return payload[2 * start : 2 * stop]

    def read(self, payload, size):
        return payload.clone().view(torch.float16)


def signs(version, size):
    """+-1 for every position, the same on all ranks, others in each version."""
    drawn = torch.randint(2, (size,), generator=torch.Generator().manual_seed(version))
    return 2.0 * drawn - 1


class FlippedSender(PlainSender):
    """Codewords with the signs of their version."""

    def __init__(self, code, worker, blocks, into=None):
        super().__init__(code, worker, blocks)  # it travels from elsewhere

    def begin(self, version):
        super().begin(version)
        self._version = version

    def codeword(self):
        plain = super().codeword()
        self._flipped = signs(self._version, len(plain)) * plain
        return self._flipped

    def settle(self, wire, packed, kept):
        return self._flipped[kept]


class FlippedReceiver(LinearReceiver):
    """Takes the signs off again."""

    def gradient(self, decoded, version, touched, *, views=False):
        super().gradient(signs(version, decoded.shape[1]) * decoded, version, touched, views=views)


def add():
    """Make them known."""
    register(Float16)
    COMPRESSORS["flipped"] = Compressor(FlippedSender, FlippedReceiver)


def train(name, start="auto"):
    """Trained weights."""
    model = Classifier(sgd)
    strategy = LWPDStrategy(code=lwpd_code(4, 4, 2), start_method=start, timeout_s=60, **ADDED[name])
    trainer = quiet_trainer(devices=4, strategy=strategy, max_steps=UPDATES, max_epochs=-1)
    trainer.fit(model, loader())
    assert trainer.global_step == UPDATES
    assert not trainer.strategy.failures
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args()
    add()
    torch.save(train(options.name, options.start), options.file)


if __name__ == "__main__":
    sys.exit(main())
