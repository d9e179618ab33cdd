"""What one rank runs: a plain torch loop, with the training command's words and results.

Model, batches, optimizer, schedule, clipping and target are those of the race; Lightning's loop is not in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed import TCPStore

from lwpd_lightning.data import CodedLoader, seed_of_the_run

from ... import names  # noqa: F401 - the configuration says ${experiments:...}
from ...names import CONFIG_PATH
from ...peers.batches import share_of
from ...summary import write_atomically
from ..race.traffic import leave_mark

_STORE_PORT = 29511


class Step(nn.Module):
    """A module whose forward is the model's training step, for wrappers that average what forward used."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, number: int) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.model.training_step(batch, number)
        return loss


class Loop:
    """One rank's fit, whose ranks exchange nothing: subclasses do. Closed on the way out.

    Args:
        cfg: as the training command composes it for a scheme.
        rank: this one, of ``cfg.trainer.num_nodes``.
        directory: where results go.

    Attributes:
        model: what is trained; a LightningModule without a Trainer.
        step: its training step.
        optimizer: what steps, and whose gradients are cleared.
        around: entered around all updates.
        store: rank 0's; carries validations, and whatever a subclass sends.
    """

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        self.cfg, self.rank, self.ranks, self._directory = cfg, rank, int(cfg.trainer.num_nodes), directory
        self._began_at = time.perf_counter()
        torch.set_num_threads(1)
        seed_everything(cfg.seed, verbose=False)
        data = instantiate(cfg.data, _convert_="all")
        self.model = instantiate(cfg.model, _convert_="all")
        self.model.log = lambda *_, **__: None  # there is no Trainer
        self._metrics = [one for one in self.model.children() if hasattr(one, "metric_state")]
        for metric in self._metrics:
            metric.distributed_available_fn = lambda: False  # rank 0 alone computes it, of what the others tell
        data.setup()
        loader = data.train_dataloader()
        self._batches = CodedLoader(loader, data_parts=self.ranks, parts=(rank,), seed=seed_of_the_run())
        self._validation = share_of(data.val_dataloader(), rank, self.ranks, cfg.trainer.get("limit_val_batches"))
        limit = cfg.trainer.get("max_steps", -1)
        self._steps = int(limit) if limit > 0 else int(cfg.trainer.max_epochs) * len(self._batches)
        self.step: nn.Module = Step(self.model)
        self.optimizer: Any = self.model.optimizer_factory(self.model.parameters())
        schedule = self.model.schedule_factory
        self._schedule = schedule(self.optimizer, total_steps=self._steps) if schedule is not None else None
        self.around: AbstractContextManager[object] = nullcontext()
        self.store = TCPStore(os.environ["MASTER_ADDR"], _STORE_PORT, is_master=rank == 0, wait_for_workers=False)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave what was opened beside the store."""

    def average(self) -> None:
        """Called between backward and clipping: make the gradients those of all ranks, where backward has not."""

    def common_model(self) -> AbstractContextManager[object]:
        """With the parameters that all ranks have in the model."""
        return nullcontext()

    def train(self) -> None:
        """Make updates until a validation reaches the target; rank 0 writes the summary."""
        clip = self.cfg.trainer.get("gradient_clip_val")
        every = self.cfg.trainer.get("val_check_interval")
        every = every if isinstance(every, int) else len(self._batches)
        stops = self.cfg.callbacks.get("stop") is not None
        reached_s, updates, first_at = None, 0, self._began_at
        with self.around:
            for updates, batch in enumerate(self._parts(), start=1):
                self.optimizer.zero_grad()
                self.step(batch, updates).backward()
                self.average()
                if clip:
                    nn.utils.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                if self._schedule is not None:
                    self._schedule.step()
                if updates == 1:
                    first_at = time.perf_counter()
                    if self.rank == 0:
                        leave_mark(self._directory)
                if updates % every == 0 and self._reaches_target(updates) and stops:
                    reached_s = time.perf_counter() - self._began_at
                    break
        if self.rank == 0:
            self._summarise(updates, first_at, reached_s)
        self._leave_together()

    def _parts(self) -> Iterator[Any]:
        for update in range(self._steps):
            epoch, index = divmod(update, len(self._batches))
            yield self._batches.batch(epoch, index).parts[self.rank]

    def _reaches_target(self, updates: int) -> bool:
        """Whether the model that all ranks have does; each validates its share, rank 0 decides."""
        target = self.cfg.target
        with self.common_model():
            self.model.eval()
            with torch.no_grad():
                for number, batch in enumerate(self._validation):
                    self.model.validation_step(batch, number)
            self.model.train()
        metric = getattr(self.model, target.metric)
        state = {name: getattr(metric, name) for name in metric._defaults}  # sums, all of them
        if self.rank:
            self.store.set(f"{updates}/{self.rank}", json.dumps({name: v.tolist() for name, v in state.items()}))
        else:
            for rank in range(1, self.ranks):
                for name, value in json.loads(self.store.get(f"{updates}/{rank}")).items():
                    state[name] += torch.tensor(value, dtype=state[name].dtype)
            self.value = float(metric.compute())
            print(f"update {updates}: {target.metric} {self.value:.4f}", flush=True)
            reached = self.value >= target.value if target.mode == "max" else self.value <= target.value
            self.store.set(f"{updates}/reached", str(int(reached)))
        for one in self._metrics:
            one.reset()
        return bool(int(self.store.get(f"{updates}/reached")))

    def _summarise(self, updates: int, first_at: float, reached_s: float | None) -> None:
        ended_at = time.perf_counter()
        document = {
            "updates": updates,
            "time_to_target_s": reached_s,
            "startup_s": first_at - self._began_at,
            "fit_s": ended_at - self._began_at,
            "update_s_mean": (ended_at - first_at) / max(1, updates - 1),
            "compute_s_mean": 0.0,  # not told apart: the exchange may be inside of the backward
            "parameters": sum(p.numel() for p in self.model.parameters()),
            self.cfg.target.metric: self.value,
        }
        write_atomically(self._directory / "summary.json", document)

    def _leave_together(self) -> None:
        """Rank 0 has the store, and whatever a subclass serves there: it ends last."""
        self.store.set(f"done/{self.rank}", "1")
        if self.rank == 0:
            for rank in range(self.ranks):
                self.store.get(f"done/{rank}")


_Kind = TypeVar("_Kind", bound=Loop)


def train(kinds: dict[str, type[_Kind]]) -> None:
    """Train by the loop of ``sys.argv``'s scheme, and the environment that `race.ranks` gives to a rank."""
    *words, run_dir = sys.argv[1:]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        # A lone rank's Hydra knows neither the race's callbacks nor its number of hosts.
        cfg = compose("train", overrides=[word for word in words if "first_update" not in word])
    directory = Path(run_dir.removeprefix("hydra.run.dir="))
    directory.mkdir(parents=True, exist_ok=True)
    with kinds[cfg.scheme.name](cfg, int(os.environ["NODE_RANK"]), directory) as loop:
        loop.train()
