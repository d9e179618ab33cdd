"""Time of one update: coded exchange at K = n against Lightning's DDPStrategy, paired in one run.

    python -m experiments.bench.against_ddp [--workers 4] [--hidden 1000] [--part 32] [--updates 200] [--pairs 5]

Same model, optimizer and samples for each rank and update; every timing is a fresh process, and the two alternate.
DDP keeps its defaults but gradient_as_bucket_view, which its authors recommend; both get one intra-op thread a rank,
which Lightning sets too when ranks outnumber half the cores. DDP talks over NCCL where each rank has a GPU of its own,
and over Gloo on CPUs and where ranks share a GPU, which NCCL refuses.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .own_process import measured, tell

if TYPE_CHECKING:
    import torch

SCHEMES = {
    "ddp": "DDPStrategy",
    "local": "local_code(n, n/2, 2): each rank one data part of two",
    "lwpd": "lwpd_code(n, n, 2): each rank two data parts of n/2",
    "uncoded": "uncoded(n)",
}


def train(scheme: str, workers: int, hidden: int, part: int, updates: int, accelerator: str, start: str) -> None:
    """One timing, printed as a line of JSON by rank 0 (run in a process of its own)."""
    # The process that starts the timed ones needs no torch.
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.strategies import DDPStrategy
    from torch.utils.data import DataLoader, TensorDataset

    from lwpd_lightning import LWPDStrategy, local_code, lwpd_code, uncoded

    from .perceptron import Perceptron

    warm_up = 20

    class Clock(pl.Callback):
        on_workers = False

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == warm_up:
                self.started = self.now()

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            per_update = (self.now() - self.started) / updates
            if trainer.is_global_zero:
                size = sum(p.numel() for p in pl_module.parameters())
                tell({"per_update_s": per_update, "parameters": size})

        @staticmethod
        def now() -> float:
            if accelerator == "gpu":
                torch.cuda.synchronize()
            return time.perf_counter()

    torch.manual_seed(0)
    steps = updates + warm_up
    places = places_of(workers, accelerator)
    if scheme == "ddp":
        strategy: Any = DDPStrategy(
            parallel_devices=places, process_group_backend=backend(places), gradient_as_bucket_view=True
        )
        batch = part
        samples = part * steps * workers
    else:
        code = {
            "local": lambda: local_code(workers, data_parts=workers // 2, blocks=2),
            "lwpd": lambda: lwpd_code(workers, workers, 2),
            "uncoded": lambda: uncoded(workers),
        }[scheme]()
        strategy = LWPDStrategy(code=code, start_method=start, parallel_devices=places)
        loads = {len(code.parts(worker)) for worker in range(workers)}
        assert len(loads) == 1
        batch = part // loads.pop() * code.data_parts  # every rank computes `part` samples in each update
        samples = batch * steps
    data = TensorDataset(torch.randn(samples, 64), torch.randint(0, 10, (samples,)))
    model = Perceptron((hidden, hidden - 64), lr=0.05, momentum=0.9)
    trainer = pl.Trainer(
        accelerator=accelerator, strategy=strategy, max_steps=steps, max_epochs=1, callbacks=[Clock()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=batch))


def places_of(workers: int, accelerator: str) -> list[torch.device]:
    """The ranks' devices: a GPU each, as far as there are so many."""
    import torch  # as in train

    if accelerator == "cpu":
        return [torch.device("cpu")] * workers
    return [torch.device("cuda", rank % torch.cuda.device_count()) for rank in range(workers)]


def backend(places: list[torch.device]) -> str:
    """What DDP can talk over between those devices."""
    return "nccl" if places[0].type == "cuda" and len(set(places)) == len(places) else "gloo"


def main(arguments: Sequence[str] | None = None) -> None:
    """Alternate the schemes and print medians and paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1000, help="width; 1000 gives about a million parameters")
    parser.add_argument("--part", type=int, default=32, help="samples that a rank computes in one update")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--start", default="auto", choices=["auto", "fork", "rerun"], help="of coded ranks")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--one", choices=list(SCHEMES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = ("workers", "hidden", "part", "updates", "accelerator", "start")
    sizes = {name: getattr(options, name) for name in names}
    if options.one:
        train(options.one, **sizes)
        return
    links = "NCCL" if backend(places_of(options.workers, options.accelerator)) == "nccl" else "Gloo"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if options.accelerator == "cpu" else None
    seconds: dict[str, list[float]] = {scheme: [] for scheme in options.schemes}
    parameters = 0
    for pair in range(options.pairs):
        for scheme in options.schemes:
            try:
                figures = measured(f"{__package__}.against_ddp", scheme, environment, **sizes)
            except RuntimeError as error:
                sys.exit(str(error))
            seconds[scheme].append(figures["per_update_s"])
            parameters = figures["parameters"]
            print(f"pair {pair + 1}/{options.pairs}  {scheme:8s} {1000 * seconds[scheme][-1]:7.2f} ms", flush=True)
    print(f"\n{options.workers} ranks, {parameters:,} parameters, {options.part} samples a rank, K = n, loopback")
    for scheme, values in seconds.items():
        line = f"{scheme:8s} {1000 * statistics.median(values):7.2f} ms/update"
        if "ddp" in seconds:
            ratios = [value / ddp for value, ddp in zip(values, seconds["ddp"], strict=True)]
            line += f"   {statistics.median(ratios):5.2f} x ddp ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{line}   {SCHEMES[scheme]}{f' over {links}' if scheme == 'ddp' else ''}")


if __name__ == "__main__":
    main()
