"""What each host of a testbed had sent and received when training began: start-up is no update."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig

MARK = "first_update"


class Traffic(NamedTuple):
    """Bytes through a host's interface since it exists, headers of all layers included."""

    sent: int
    received: int


def of_process(pid: int, interface: str) -> Traffic:
    """What has passed the interface of a process' host: /proc shows the network namespace that the process is in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == interface:
            counts = fields.split()
            return Traffic(sent=int(counts[8]), received=int(counts[0]))
    raise FileNotFoundError(f"process {pid} has no interface {interface}")


class FirstUpdate(pl.Callback):
    """Leaves a mark in the run's directory when rank 0 has made its first update."""

    on_workers = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the time, in seconds of the machine's monotonic clock, once."""
        if trainer.is_global_zero and trainer.global_step == 1:
            leave_mark(Path(HydraConfig.get().runtime.output_dir))


def leave_mark(directory: Path) -> None:
    """The first update has just been made."""
    mark = directory / MARK
    mark.with_suffix(".new").write_text(str(time.monotonic()))
    mark.with_suffix(".new").rename(mark)
