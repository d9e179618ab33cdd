"""Strangers at rank 0's ports while it trains, validates and writes checkpoints: nothing happens."""

import os
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, uncoded
from lwpd_lightning.links.room import free_files
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

pytestmark = pytest.mark.slow

STRANGERS, CONNECTS, MANY = 1024, 2500, 10_000
# Holds connections that say `word`, or connects and leaves.
STRANGER = """
import resource, socket, sys, time
ports, count, holds, word = eval(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
held = []
for number in range(count):
    stranger = socket.socket()
    stranger.settimeout(0.004)
    try:
        stranger.connect(("127.0.0.1", ports[number % len(ports)]))
        stranger.sendall(word)
    except OSError:
        pass
    if holds:
        time.sleep(0.0005)
        held.append(stranger)
    else:
        stranger.close()
print("there", flush=True)
sys.stdin.read()
"""


def ports():
    """At which this process listens."""
    return sorted({int(line.split()[1].rsplit(":", 1)[1], 16) for line in _listening()})


def _listening():
    inodes = set()
    for file in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{file}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    with open("/proc/self/net/tcp") as tcp:
        lines = tcp.read().splitlines()[1:]
    return [line for line in lines if line.split()[3] == "0A" and line.split()[9] in inodes]


class Strangers(pl.Callback):
    """Lets strangers come at step 2, and go at step 8; between, a checkpoint is written and rank 0 validates.

    Those that do not stay come anew before either.
    """

    on_workers = False

    def __init__(self, path, count, holds, word):
        self.path, self.count, self.holds, self.word = path, count, holds, word
        self.process, self.free = None, []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            self.free.append(free_files())
            self._come()
        if trainer.global_step == 5:
            self.free.append(free_files())
            self._come_anew()
            trainer.save_checkpoint(self.path)
        if trainer.global_step == 8:
            self._go()
            deadline = time.monotonic() + 20.0
            while self.free[0] - free_files() > 8 and time.monotonic() < deadline:
                time.sleep(0.05)
            self.free.append(free_files())

    def on_validation_start(self, trainer, *_):
        self._come_anew()

    def _come_anew(self):
        if self.process is not None and not self.holds:
            self._go()
            self._come()

    def _come(self):
        arguments = repr((ports(), self.count, self.holds, self.word))
        self.process = subprocess.Popen(
            [sys.executable, "-c", STRANGER, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "there\n"

    def _go(self):
        self.process.communicate(timeout=20)
        self.process = None


def fit(path, strangers=None, **strategy):
    pl.seed_everything(1)
    model, trainer = Classifier(sgd), None
    trainer = quiet_trainer(
        devices=3,
        strategy=LWPDStrategy(code=uncoded(3), **strategy),
        max_steps=12,
        max_epochs=-1,
        callbacks=[] if strangers is None else [strangers],
        val_check_interval=4,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
    )
    trainer.fit(model, loader(shuffle=True), loader())
    return [parameter.detach().clone() for parameter in model.parameters()], trainer


@pytest.mark.parametrize(
    ("count", "holds", "word"),
    [
        (STRANGERS, True, b""),
        (STRANGERS, True, b"\xff"),
        (CONNECTS, False, b""),
        pytest.param(MANY, False, b"", marks=pytest.mark.slow),
    ],
    ids=["silent", "speaking", "coming and going", "ten thousand"],
)
def test_strangers_change_nothing(tmp_path, few_files, count, holds, word):
    alone, _ = fit(tmp_path)
    strangers = Strangers(tmp_path / "made.ckpt", count, holds, word)
    trained, trainer = fit(tmp_path, strangers, heartbeat_s=2.0)
    assert trainer.strategy.failures == []
    for ours, theirs in zip(trained, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.load(strangers.path, weights_only=True)["global_step"] == 5
    before, _, after = strangers.free
    assert before - after <= 8
