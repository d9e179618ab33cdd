"""What one rank runs: a plain torch loop under torchft's manager, with the training command's words and results."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

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

_LIGHTHOUSE_PORT, _STORE_PORT = 29510, 29511
_PATIENCE = timedelta(seconds=120)


def train() -> None:
    """Train until the target, by ``sys.argv`` and the environment that `race.ranks` gives to a rank."""
    *words, run_dir = sys.argv[1:]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        # A lone rank's Hydra knows neither the race's callbacks nor its number of hosts.
        cfg = compose("train", overrides=[word for word in words if "first_update" not in word])
    rank = int(os.environ["NODE_RANK"])
    directory = Path(run_dir.removeprefix("hydra.run.dir="))
    directory.mkdir(parents=True, exist_ok=True)
    with _Fit(cfg, rank, directory) as fit:
        fit.train()


class _Step(nn.Module):
    """The module whose forward is the training step, for DDP's wrapper."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, number: int) -> Tensor:
        loss: Tensor = self.model.training_step(batch, number)
        return loss


class _Fit:
    """One rank's fit; closed on the way out.

    Args:
        cfg: as the training command composes it, with scheme=ddp or scheme=diloco.
        rank: this one, of ``cfg.trainer.num_nodes``.
        directory: where results go.
    """

    def __init__(self, cfg: DictConfig, rank: int, directory: Path) -> None:
        self._cfg, self._rank, self._ranks, self._directory = cfg, rank, cfg.trainer.num_nodes, directory
        self._began_at = time.perf_counter()
        torch.set_num_threads(1)
        seed_everything(cfg.seed, verbose=False)
        data = instantiate(cfg.data, _convert_="all")
        self._model = instantiate(cfg.model, _convert_="all")
        self._model.log = lambda *_, **__: None  # there is no Trainer
        data.setup()
        loader = data.train_dataloader()
        self._batches = CodedLoader(loader, data_parts=self._ranks, parts=(rank,), seed=seed_of_the_run())
        self._validation = share_of(data.val_dataloader(), rank, self._ranks)
        self._local = cfg.scheme.name == "diloco"
        self._open()

    def _open(self) -> None:
        # Here, so that this module can be imported without the extra.
        from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo
        from torchft.coordination import LighthouseServer
        from torchft.local_sgd import DiLoCo

        cfg, host = self._cfg, os.environ["MASTER_ADDR"]
        own = _own_address() if self._ranks > 1 and host != "127.0.0.1" else host
        self._lighthouse = (
            LighthouseServer(bind=f"[::]:{_LIGHTHOUSE_PORT}", min_replicas=self._ranks) if self._rank == 0 else None
        )
        # A replica group of torchft is one rank here, and has a store of its own; rank 0's also carries validations.
        self._group_store = TCPStore(own, 0, is_master=True, wait_for_workers=False)
        self._store = TCPStore(host, _STORE_PORT, is_master=self._rank == 0, wait_for_workers=False)
        self._manager = Manager(
            pg=ProcessGroupGloo(timeout=_PATIENCE),
            load_state_dict=self._model.load_state_dict,
            state_dict=self._model.state_dict,
            min_replica_size=self._ranks,
            use_async_quorum=not self._local,  # DiLoCo asks for the other
            timeout=_PATIENCE,
            quorum_timeout=_PATIENCE,
            connect_timeout=_PATIENCE,
            rank=0,
            world_size=1,
            store_addr=own,
            store_port=self._group_store.port,
            lighthouse_addr=f"http://{host}:{_LIGHTHOUSE_PORT}",
            replica_id=f"race_{self._rank}",
            hostname=own,
            init_sync=False,  # the same seed on all ranks
        )
        made = self._model.optimizer_factory(self._model.parameters())
        self._inner: torch.optim.Optimizer = made
        self._steps = self._steps_in_all()
        schedule = self._model.schedule_factory
        self._schedule = schedule(made, total_steps=self._steps) if schedule is not None else None
        self._optimizer: Any = made if self._local else Optimizer(self._manager, made)
        step = _Step(self._model)
        self._step: nn.Module = step if self._local else DistributedDataParallel(self._manager, step)
        self._outer: Any = nullcontext()
        if self._local:
            settings = cfg.scheme.strategy
            outer = torch.optim.SGD(
                self._model.parameters(), lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
            )
            self._outer = DiLoCo(
                self._manager, [self._model], self._inner, outer, sync_every=settings.every, use_bucketization=True
            )

    def __enter__(self) -> _Fit:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.shutdown(wait=False)
        if self._lighthouse is not None:
            self._lighthouse.shutdown()

    def _steps_in_all(self) -> int:
        limit = self._cfg.trainer.get("max_steps", -1)
        return int(limit) if limit > 0 else int(self._cfg.trainer.max_epochs) * len(self._batches)

    def train(self) -> None:
        """Make updates until a validation reaches the target; rank 0 writes the summary."""
        clip = self._cfg.trainer.get("gradient_clip_val")
        every = self._cfg.trainer.get("val_check_interval")
        every = every if isinstance(every, int) else len(self._batches)
        reached_s, updates, first_at = None, 0, self._began_at
        with self._outer:
            for updates, batch in enumerate(self._parts(), start=1):
                self._optimizer.zero_grad()
                self._step(batch, updates).backward()
                if clip:
                    nn.utils.clip_grad_norm_(self._model.parameters(), clip)
                self._optimizer.step()
                if self._schedule is not None:
                    self._schedule.step()
                if updates == 1:
                    first_at = time.perf_counter()
                    if self._rank == 0:
                        leave_mark(self._directory)
                if updates % every == 0 and self._reaches_target(updates):
                    reached_s = time.perf_counter() - self._began_at
                    break
        if self._rank == 0:
            self._summarise(updates, first_at, reached_s)
        self._leave_together()

    def _parts(self) -> Iterator[Any]:
        for update in range(self._steps):
            epoch, index = divmod(update, len(self._batches))
            yield self._batches.batch(epoch, index).parts[self._rank]

    def _reaches_target(self, updates: int) -> bool:
        """Whether the model that all ranks have does; each validates its share of the samples, rank 0 decides."""
        target = self._cfg.target
        with self._common_model():
            self._model.eval()
            limit = self._cfg.trainer.get("limit_val_batches")
            with torch.no_grad():
                for number, batch in enumerate(self._validation):
                    if isinstance(limit, int) and number >= limit:
                        break
                    self._model.validation_step(batch, number)
            self._model.train()
        metric = getattr(self._model, target.metric)
        state = {name: getattr(metric, name) for name in metric._defaults}  # sums, all of them
        if self._rank:
            self._store.set(f"{updates}/{self._rank}", json.dumps({name: v.tolist() for name, v in state.items()}))
        else:
            for rank in range(1, self._ranks):
                for name, value in json.loads(self._store.get(f"{updates}/{rank}")).items():
                    state[name] += torch.tensor(value, dtype=state[name].dtype)
            self.value = float(metric.compute())
            print(f"update {updates}: {target.metric} {self.value:.4f}", flush=True)
            reached = self.value >= target.value if target.mode == "max" else self.value <= target.value
            self._store.set(f"{updates}/reached", str(int(reached)))
        for one in self._model.children():
            if hasattr(one, "metric_state"):
                one.reset()
        return bool(int(self._store.get(f"{updates}/reached")))

    def _common_model(self) -> AbstractContextManager[None]:
        """With the parameters of the last exchange in the model, which all ranks have."""
        if not self._local:
            return nullcontext()
        (fragment,) = self._outer._fragments
        return _Swapped(self._model, fragment.original_parameters)

    def _summarise(self, updates: int, first_at: float, reached_s: float | None) -> None:
        ended_at = time.perf_counter()
        document = {
            "updates": updates,
            "time_to_target_s": reached_s,
            "startup_s": first_at - self._began_at,
            "fit_s": ended_at - self._began_at,
            "update_s_mean": (ended_at - first_at) / max(1, updates - 1),
            "compute_s_mean": 0.0,  # not told apart: the exchange is inside of the backward
            "parameters": sum(p.numel() for p in self._model.parameters()),
            self._cfg.target.metric: self.value,
        }
        write_atomically(self._directory / "summary.json", document)

    def _leave_together(self) -> None:
        """Rank 0 has the lighthouse and the store: it ends last."""
        self._store.set(f"done/{self._rank}", "1")
        if self._rank == 0:
            for rank in range(self._ranks):
                self._store.get(f"done/{rank}")


class _Swapped(AbstractContextManager[None]):
    """Other values in a module's parameters, for a while."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self._model, self._values = model, values

    def __enter__(self) -> None:
        self._own = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self._fill(self._values)

    def __exit__(self, *_: object) -> None:
        self._fill(self._own)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(values[name])


def _own_address() -> str:
    """Of this rank's host, on a testbed."""
    from fcntl import ioctl
    from socket import AF_INET, SOCK_DGRAM, inet_ntoa, socket

    with socket(AF_INET, SOCK_DGRAM) as probe:
        request = os.environ["GLOO_SOCKET_IFNAME"].encode().ljust(256, b"\0")
        return inet_ntoa(ioctl(probe.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR
