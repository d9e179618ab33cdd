"""A job of its own for tests that signal and kill: trains until it is told to stop, and says how far it is."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from experiments.bench.race.testbed import Host
from lwpd_lightning import LWPDStrategy, gradient_code, lwpd_code, uncoded
from lwpd_lightning.reduction.reduction import Reduction
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


class Narrator(pl.Callback):
    on_workers = False

    def on_train_batch_end(self, trainer, *args):
        print(f"ARRIVED {len(trainer.strategy.last_update.arrivals)}", flush=True)
        print(f"UPDATE {trainer.global_step}", flush=True)


class Told(pl.Callback):
    """Rank 0 runs a command between an optimizer's step and its being counted."""

    on_workers = False

    def __init__(self, update, command):
        self.update, self.command = update, command

    def on_train_start(self, trainer, pl_module):
        def told(*args):
            if trainer.global_step == self.update - 1:
                subprocess.run(self.command, shell=True, check=True)

        if trainer.is_global_zero:
            trainer.optimizers[0].register_step_post_hook(told)


class Breaking(Classifier):
    fail_at: int = -1
    breaks_in: str | None = None

    def widen(self):
        """With codewords long enough for several reducers."""
        self.net = torch.nn.Sequential(torch.nn.Linear(12, 2000), torch.nn.Tanh(), torch.nn.Linear(2000, 3))

    def setup(self, stage):
        self.break_in("setup")

    def configure_optimizers(self):
        self.break_in("configure_optimizers")
        return super().configure_optimizers()

    def on_save_checkpoint(self, checkpoint):
        print("SAVES", flush=True)

    def break_in(self, place):
        if self.breaks_in == place and not self.trainer.is_global_zero:
            raise RuntimeError(f"injected failure in {place}")

    def training_step(self, batch, batch_idx):
        if not self.trainer.is_global_zero and self.global_step >= self.fail_at >= 0:  # it may skip any one
            raise RuntimeError("injected failure")
        return super().training_step(batch, batch_idx)


def die_when_asked(when):
    """Let the first reducer of the sixth decision be killed before or after it has done its share."""
    begin = Reduction.begin

    def deadly(reduction, decision):
        mine = decision.number == 6 and reduction.ranks.me == decision.workers[0]
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        begin(reduction, decision)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    Reduction.begin = deadly


def stop_when_asked(worker, number):
    """Let a worker stop, once, when it is asked to do its share of a decision from this number on."""
    begin, stopped = Reduction.begin, []

    def stopping(reduction, decision):
        if reduction.ranks.me == worker in decision.workers and decision.number >= number and not stopped:
            stopped.append(True)
            print("STOPS", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        begin(reduction, decision)

    Reduction.begin = stopping


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", default="auto")
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--fits", type=int, default=1)
    parser.add_argument("--heartbeat", type=float, default=5.0)
    parser.add_argument("--timeout", type=float, default=100.0)
    parser.add_argument("--host", help="network namespace to move to")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--wait-for", type=int)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--uncoded", action="store_true")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--die-when-asked", choices=["before", "after"])
    parser.add_argument("--stop-when-asked", type=int, nargs=2, metavar=("WORKER", "DECISION"))
    parser.add_argument("--breaks-in", choices=["script", "setup", "configure_optimizers"])
    parser.add_argument("--tell-at", type=int, default=-1, help="update")
    parser.add_argument("--tell", help="command that rank 0 runs there")
    options = parser.parse_args()
    if "RANK" in os.environ:
        Path("/proc/self/comm").write_text(f"job-rank-{os.environ['RANK']}")  # for who is to kill it
    if options.host:
        Host(options.host, address="").enter()
    if options.breaks_in == "script" and "LWPD_FIT" in os.environ:
        raise RuntimeError("injected failure in script")
    if options.die_when_asked:
        die_when_asked(options.die_when_asked)
    if options.stop_when_asked:
        stop_when_asked(*options.stop_when_asked)
    pl.seed_everything(1)
    model = Breaking(sgd)
    model.fail_at, model.breaks_in = options.fail_at, options.breaks_in
    if options.wide:
        model.widen()
    if options.exact:
        code, exact = gradient_code(options.workers, stragglers=1), {"decoder": "exact", "stale": "drop"}
    elif options.uncoded:
        code, exact = uncoded(options.workers), {}
    else:
        code, exact = lwpd_code(options.workers, 2, 2), {}
    for _ in range(options.fits):  # each with a trainer of its own
        strategy = LWPDStrategy(
            code=code,
            **exact,
            wait_for=options.wait_for or options.workers - (options.workers > 2),
            start_method=options.start if options.nodes == 1 else "auto",
            timeout_s=options.timeout,
            heartbeat_s=options.heartbeat,
            parallel_devices=[torch.device("cuda", 0)] * options.workers if options.accelerator == "gpu" else None,
        )
        devices = {} if options.accelerator == "gpu" else {"devices": options.workers // options.nodes}
        trainer = quiet_trainer(
            accelerator=options.accelerator,
            num_nodes=options.nodes,
            strategy=strategy,
            max_steps=options.updates,
            max_epochs=-1,
            callbacks=[Narrator(), Told(options.tell_at, options.tell)],
            **devices,
        )
        trainer.fit(model, loader(shuffle=True, num_workers=options.loader_workers))
    print(f"DONE {sum(p.double().norm().item() for p in model.parameters()):.12f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
