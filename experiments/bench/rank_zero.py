"""What coded exchange costs rank 0 beside the user's model: CPU time of an update, and memory.

    python -m experiments.bench.rank_zero [--workers 8] [--hidden 1024] [--updates 200]

Rank 0 is worker 0 too; with "coordinator only" it computes no codeword (dedicated_coordinator=True).

CPU: time of rank 0's thread inside the strategy, without the user's training_step and backward that run inside it; the
optimizer's step and Lightning's loop are outside. ZeroMQ's own thread is told apart. Rank 0 has one core for itself, as
on a machine of its own, and its workers share the others; where there is only one core, all share it. Memory: what the
process has grown by from the fit's start to its end, without gradients and the optimizer's state, on a model so large
that little else counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from rich.console import Console
    from rich.table import Table

from .own_process import measured, tell

COORDINATOR_ONLY = "sketch, coordinator only"
SCHEMES = ("sketch", COORDINATOR_ONLY, "uncoded", "lwpd")
MEMORY_HIDDEN = 4000  # 16 million parameters


def train(scheme: str, workers: int, hidden: int, updates: int) -> None:
    """One fit, whose figures rank 0 prints as a line of JSON (in a process of its own)."""
    # The process that starts the timed ones needs no torch.
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from lwpd_lightning import LWPDStrategy, local_code, lwpd_code, uncoded
    from lwpd_lightning import strategy as module
    from lwpd_lightning.coding.wire import wire_format
    from lwpd_lightning.rank_zero import CodedFit

    from .perceptron import Perceptron

    spent = {"inside": 0.0, "model": 0.0}

    def timed(kind: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return act(*args, **kwargs)
            finally:
                spent[kind] += time.thread_time() - started

        return call

    class Measured(CodedFit):
        """Rank 0's side, with a clock around it and around what of the model runs inside."""

        def training_step(self, step: Any, arguments: Any, batch_index: int) -> Any:
            return timed("inside", super().training_step)(timed("model", step), arguments, batch_index)

        def backward(self, loss: Any, backward: Any) -> None:
            timed("inside", super().backward)(loss, timed("model", backward))

        def stepped(self) -> None:
            timed("inside", super().stepped)()

    class Clock(pl.Callback):
        on_workers = False

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 10:
                _have_own_core()
            elif trainer.global_step == 20:
                spent.update(inside=0.0, model=0.0)
                self.process, self.thread, self.wall = time.process_time(), time.thread_time(), time.perf_counter()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not trainer.is_global_zero:
                return
            others = (time.process_time() - self.process) - (time.thread_time() - self.thread)
            parameters = sum(p.numel() for p in pl_module.parameters())
            grown = _resident() - before
            tell({
                "strategy_ms": 1e3 * (spent["inside"] - spent["model"]) / updates,
                "links_ms": 1e3 * others / updates,
                "update_ms": 1e3 * (time.perf_counter() - self.wall) / updates,
                "parameters": parameters,
                "copies": grown / (4 * parameters) - 1,  # one is the gradients
            })  # fmt: skip

    module.CodedFit = Measured  # type: ignore[misc]

    def sketch(**settings: Any) -> LWPDStrategy:
        return LWPDStrategy(
            code=local_code(workers, data_parts=workers, blocks=3), stale="drop", wire_dtype="ternary",
            update_dtype="ternary", error_feedback=True, **settings,
        )  # fmt: skip

    dedicated = scheme == COORDINATOR_ONLY
    strategies = {
        "sketch": sketch,
        COORDINATOR_ONLY: lambda: sketch(dedicated_coordinator=True),
        "uncoded": lambda: LWPDStrategy(code=uncoded(workers)),
        "lwpd": lambda: LWPDStrategy(code=lwpd_code(workers, workers // 2, 2)),
    }
    data = TensorDataset(torch.randn(4096, 64), torch.randint(0, 10, (4096,)))
    net = Perceptron((hidden, hidden), lr=0.01)
    net.net(data.tensors[0][:256])  # what a first call allocates is the model's
    wire_format("ternary")  # loads numba, some 100 MB whatever the model
    before = _resident()
    pl.Trainer(
        accelerator="cpu", devices=workers + dedicated, strategy=strategies[scheme](), callbacks=[Clock()],
        max_epochs=-1, max_steps=20 + updates, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(net, DataLoader(data, batch_size=256, shuffle=True, drop_last=True))  # fmt: skip


def _have_own_core() -> None:
    """Leave this process the first core, and its workers the others."""
    own, *others = sorted(os.sched_getaffinity(0))
    processes = {os.getpid(): {own}} | {worker.pid: set(others) for worker in multiprocessing.active_children()}
    for process, cores in processes.items():
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), cores or {own})


def _resident() -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.rank_zero", description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--one", choices=SCHEMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        train(options.one, options.workers, options.hidden, options.updates)
        return
    table = Table(title=f"rank 0 of {options.workers}, beside the model", title_justify="left")
    for name in ("scheme", "parameters", "CPU, ms/update", "ZeroMQ's thread", "update, ms", "memory, float32 copies"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    with Console().status("measuring"):
        for scheme in SCHEMES:
            cost, large = (
                measured(f"{__package__}.rank_zero", scheme, workers=options.workers, hidden=hidden, updates=updates)
                for hidden, updates in ((options.hidden, options.updates), (MEMORY_HIDDEN, 5))
            )
            table.add_row(
                scheme,
                f"{cost['parameters']:,.0f}",
                f"{cost['strategy_ms']:.1f}",
                f"{cost['links_ms']:.1f}",
                f"{cost['update_ms']:.0f}",
                f"{large['copies']:.1f} of {large['parameters'] / 1e6:.0f}M",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
