"""The Lightning Strategy: hooks only. Rank 0 runs Lightning's loop unchanged; one coded batch is one update.

Long because every setting is explained here, once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors.data_connector import _worker_check
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lwpd_lightning.coding import Code
from lwpd_lightning.coding.decoders import Decoder
from lwpd_lightning.data import seed_of_the_run, training_loader
from lwpd_lightning.data.batch_size import BatchSizeMeans, of_all_workers
from lwpd_lightning.elsewhere import Elsewhere
from lwpd_lightning.entries import entries
from lwpd_lightning.exchange.update import Failure, Update
from lwpd_lightning.gathering import Gathering
from lwpd_lightning.launcher import live_with_agent
from lwpd_lightning.links.rendezvous import Rendezvous
from lwpd_lightning.meeting import meet_elsewhere, starts_elsewhere
from lwpd_lightning.rank_zero import CodedFit
from lwpd_lightning.refusals import (
    SEVERAL_OPTIMIZERS,
    refuse_optimizers,
    refuse_precision,
    refuse_process_group,
    refuse_tasks,
    refuse_trainer,
    refuse_validation_hooks,
)
from lwpd_lightning.remembered import Remembered, taken_from
from lwpd_lightning.requeue import requeue_between_updates
from lwpd_lightning.rule.arrivals import Stale
from lwpd_lightning.separate_ranks import SeparateRanks
from lwpd_lightning.settings import ExchangeSettings, StartMethod, Validation, WaitFor
from lwpd_lightning.validation import SharedValidation
from lwpd_lightning.worker_rank import RankZeroLauncher, WorkerRankLauncher


class LWPDStrategy(SeparateRanks):
    """Replaces DDP's all-reduce with coded exchange: stragglers and dead workers are erasures, not stalls.

    The gradient is cut into k tasks (data part x block of output nodes). Each of n workers computes one linear
    combination of t of them, P/B values short; the first K that are ready add theirs up among themselves, and every
    rank makes rank 0's step with the sum (Soto et al., "Lightweight Projective Derivative Codes for Compressed
    Asynchronous Gradient Descent", ICML 2022). ``batch_size`` is the whole update's batch. Metrics, checkpoints and
    validation happen on rank 0; no torch.distributed process group exists.

    Args:
        code: what each worker computes and sends; None: chosen for the world size (`recommended.default_code`), and,
            where none of stale, max_staleness, wire_dtype, update_dtype, error_feedback and compressor is named, with
            compressor="whitened", as `schemes.lwpd` has it; compressor="plain" is the exact code.
        wait_for: K, how many codewords an update waits for (2..n, 1 only with a dedicated coordinator); default n,
            which equals single-process training. "adaptive": chosen for every update from the measured delays and the
            decoding error (`rule.adaptive_wait`), and logged as ``exchange/wait_for``.
        wait_for_bounds: (least, most) of the adaptive K; None: from the least that works to n.
        decoder: "projective" (add what arrives, no solve; for tight frames), "least_squares" (solve for the arrival
            set; for stale="drop") or "exact" (`gradient_code`: the same solve, with settings under which it is always
            exact; the run fails when more workers died than the code tolerates, where "least_squares" goes on with the
            nearest gradient).
        stale: what becomes of a codeword that was computed on an older version: "apply" it in the next update, or
            "drop" it: its worker goes on with the newest. None: "drop" with a compressor that needs it, else "apply".
        max_staleness: with "apply", codewords older than this many versions are dropped; None: none are.
        wire_dtype: codewords travel as "float32", "bfloat16", "int8", "ternary" (1.6 bits a value) or
            "sign" (1.03), both with error_feedback or a compressor that rotates and best with numba (``pip install
            'lwpd-lightning[fast]'``), "float64", or a format of one's own (`coding.wire.register`); None: "ternary"
            with a compressor that rotates, else as the gradient is (float32, or float64 at 64-true).
        update_dtype: decoded gradients travel to all ranks, which make rank 0's steps themselves, as any of the same;
            None: chosen as wire_dtype is. Coarser than the gradient, K = n is no longer equal to single-process
            training.
        error_feedback: what a wire_dtype below float32 lost, what a sketch's row left out and what a dropped codeword
            carried go into the worker's next codewords; so does what an update_dtype below float32 lost, where the
            decoded gradient has one row (a code of one block, or a sketch with stale="drop").
        min_workers: the run fails when fewer workers (rank 0 counted) live; default 2, with decoder="exact" as many as
            that needs.
        heartbeat_s: seconds of silence after which a worker's link is taken for broken.
        timeout_s: longest wait for one update, or for all workers to join, before the run fails.
        update_timeout_s: a worker that holds an update up for longer, as one whose training_step hangs, is an erasure;
            None: 20 times the longest wait of the last 256 updates and a minute at least, from the 20th update on.
        restart_workers: a worker whose process has ended is started again by the one that started it, rank 0 or its
            machine's first rank: at once, then after 1, 2, 4 ... 60 s, six times in a row. It takes over rank 0's state
            and counts again. On rank 0's machine one that has not come back 12 ``heartbeat_s`` after it was lost is
            killed, and started again too. What a launcher started (torchrun, Slurm) the launcher starts again.
        tolerate_exceptions: a worker whose code raises an exception is an erasure, with its traceback logged, and is
            started again; False: the run ends, with that traceback. On rank 0 an exception always ends the run.
        max_codeword_norm: a codeword whose Euclidean norm, divided by that of its worker's row of the generator, is
            larger counts no more than one that is not finite: a number, or "10x" for ten times the median of the last
            256 that counted (no bound before the eighth). With error_feedback its worker's memory begins anew.
        dedicated_coordinator: rank 0 computes no codeword, so devices x num_nodes is n + 1.
        start_method: "fork" (one machine, no CUDA), "rerun" (the job's command, once for each worker), or "auto".
        batch_size_means: what the training loader's ``batch_size`` is: "global", the whole update's batch, or
            "per_worker", as under DDP: an update's batch is then n times as large, so that a script that came from
            ``strategy="ddp"`` keeps its numbers.
        compressor: "whitened" (codewords in the optimizer's own metric and rotated, so that coarse ones are unbiased
            and it does not notice them, without a memory; `coding.metric` says what the metric of which optimizer is),
            "rotated" (rotated alone), both with stale="drop"; "plain"; or the name of a sender and a receiver of one's
            own (`coding.compressor`); None: "error_feedback" where that is asked for, else "plain".
        validation: who runs the validation of a fit: "rank_zero", alone, or "shared": each rank runs every n-th batch,
            and rank 0 logs what all of them came to, as if it had run them all. Needs one loader without shuffle, and a
            validation_step that leaves nothing behind but what it logs and torchmetrics objects.

    Raises:
        ValueError: for settings that cannot work, in one sentence that names what would.

    Examples:
        >>> from lwpd_lightning import lwpd_code
        >>> strategy = LWPDStrategy(code=lwpd_code(n=8, k=4, t=2), wait_for=6)
        >>> pl.Trainer(accelerator="cpu", devices=8, strategy=strategy).strategy.code.n
        8
    """

    strategy_name = "lwpd"

    def __init__(
        self,
        code: Code | None = None,
        wait_for: WaitFor | None = None,
        wait_for_bounds: tuple[int, int] | None = None,
        decoder: Decoder = "projective",
        stale: Stale | None = None,
        max_staleness: int | None = None,
        wire_dtype: str | None = None,
        update_dtype: str | None = None,
        error_feedback: bool = False,
        min_workers: int | None = None,
        heartbeat_s: float = 5.0,
        timeout_s: float = 1800.0,
        update_timeout_s: float | None = None,
        dedicated_coordinator: bool = False,
        start_method: StartMethod = "auto",
        batch_size_means: BatchSizeMeans = "global",
        compressor: str | None = None,
        restart_workers: bool = True,
        tolerate_exceptions: bool = False,
        max_codeword_norm: float | str | None = None,
        validation: Validation = "rank_zero",
        *,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin)
        self.settings = ExchangeSettings(
            code=code,
            wait_for=wait_for,
            wait_for_bounds=wait_for_bounds,
            decoder=decoder,
            stale=stale,
            max_staleness=max_staleness,
            wire_dtype=wire_dtype,
            update_dtype=update_dtype,
            error_feedback=error_feedback,
            min_workers=min_workers,
            heartbeat_s=heartbeat_s,
            timeout_s=timeout_s,
            update_timeout_s=update_timeout_s,
            restart_workers=restart_workers,
            tolerate_exceptions=tolerate_exceptions,
            max_codeword_norm=max_codeword_norm,
            validation=validation,
            dedicated_coordinator=dedicated_coordinator,
            start_method=start_method,
            batch_size_means=batch_size_means,
            compressor=compressor,
        )
        self.validation: SharedValidation | None = None  # of the fit, where it is shared
        self._fit: CodedFit | None = None
        self._remembered = Remembered()
        self._suspended: list[CodedFit] = []  # that a tuner's run in mid-fit has interrupted
        self._generation = self._seed = 0
        self._elsewhere: Elsewhere | None = None  # where this is not rank 0, nor a fork of it

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no fit: its links and processes are this one's."""
        return super().__getstate__() | {
            "_fit": None,
            "validation": None,
            "_suspended": [],
            "_remembered": Remembered(),
        }

    # What the fit has done so far.

    @property
    def code(self) -> Code:
        """The code; known once the trainer exists."""
        if self.settings.code is None:
            raise RuntimeError("LWPDStrategy.code is chosen for the world size when the Trainer is constructed.")
        return self.settings.code

    @property
    def last_update(self) -> Update | None:
        """The update that was decoded last: who arrived, how stale, waiting times, bytes."""
        return self._fit.last_update if self._fit is not None else None

    @property
    def failures(self) -> list[Failure]:
        """The workers that became erasures in the current or last fit."""
        return self._fit.failures if self._fit is not None else []

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    @property
    def _running(self) -> CodedFit:
        assert self._fit is not None
        return self._fit

    # Starting processes.

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        refuse_tasks(self.cluster_environment, self.num_nodes * self.num_processes)
        self.settings = self.settings.resolved(self.world_size)
        external = self.cluster_environment.creates_processes_externally
        self.settings = self.settings.started_on(self.root_device, self.num_nodes, external)
        refuse_precision(self.precision_plugin)
        if external:
            live_with_agent()
        if self.is_global_zero:
            elsewhere = starts_elsewhere(self.cluster_environment, self.num_nodes)
            # Processes that are started for a fit end with it: the first of each other machine goes on.
            step = 1 if external else self.num_processes
            readers = list(range(step, self.world_size, step))
            self._launcher = RankZeroLauncher(self._meet if elsewhere else None, readers if elsewhere else [])
        else:
            self._elsewhere = Elsewhere(
                self.settings, self.cluster_environment, local_ranks=self.num_processes, num_nodes=self.num_nodes
            )
            self._launcher = WorkerRankLauncher(self._elsewhere.outcome)

    def _meet(self) -> Rendezvous:
        assert self.cluster_environment is not None
        return meet_elsewhere(self.cluster_environment, self.num_nodes, self.settings.timeout_s)

    @property
    def _worker(self) -> int:
        """This rank's row of the code; -1 for a dedicated coordinator."""
        return self.global_rank - self.settings.dedicated_coordinator

    # Setting up.

    def setup_environment(self) -> None:
        """Refuse what would synchronise behind the strategy's back; a worker waits until rank 0 is ready to train."""
        refuse_process_group()
        if self._trainer.state.fn is TrainerFn.FITTING:
            assert self.cluster_environment is not None
            requeue_between_updates(self._trainer, self.cluster_environment)
            self._generation, self._remembered = entries().fits - 1, Remembered()
            if self.is_global_zero:
                self._seed = seed_of_the_run()
            else:
                assert self._elsewhere is not None
                self._seed = self._elsewhere.await_fit(self._generation)
                self._trainer.num_sanity_val_steps = 0  # rank 0 has done it
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Refuse what coded exchange cannot do, then set model and optimizer up as on one device."""
        if trainer.state.fn is TrainerFn.FITTING:
            refuse_trainer(trainer)
            if self.settings.validation == "shared":
                refuse_validation_hooks(trainer)
                self.validation = SharedValidation(trainer, self.global_rank, self.world_size)
        super().setup(trainer)
        if trainer.state.fn is TrainerFn.FITTING:
            refuse_optimizers(self.optimizers, trainer.lightning_module)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Create the one optimizer and its scheduler."""
        try:
            super().setup_optimizers(trainer)
        except RuntimeError as error:
            # Lightning would advise manual optimization, which is refused too.
            if "multiple optimizers" in str(error):
                raise MisconfigurationException(SEVERAL_OPTIMIZERS) from None
            raise

    def process_dataloader(self, dataloader: object) -> object:
        """Let the training loader name its batches, and cut a fit's validation; others only rank 0 reads."""
        trainer = self._trainer
        if not trainer.training:
            fits = trainer.state.fn is TrainerFn.FITTING
            return self.validation.share_of(dataloader) if self.validation is not None and fits else dataloader
        _worker_check(trainer, dataloader, "train_dataloader")  # Lightning's advice, which looks at DataLoaders alone
        if self.settings.batch_size_means == "per_worker":
            dataloader = of_all_workers(dataloader, self.code.n)
        return training_loader(
            trainer,
            dataloader,
            data_parts=self.code.data_parts,
            parts=(0,) if self._worker < 0 else self.code.parts(self._worker),
            seed=self._seed,
        )

    # One fit.

    def on_train_start(self) -> None:
        """Rank 0 starts the workers: all that it could refuse has been checked. A worker serves until the fit ends."""
        refuse_process_group()
        assert self.cluster_environment is not None
        trainer = self._trainer
        loaders = trainer.fit_loop._combined_loader.flattened  # type: ignore[union-attr]
        if len(loaders) != 1:
            raise ValueError(f"train_dataloader() gave {len(loaders)} loaders: coded exchange takes one.")
        if self.validation is not None:
            self.validation.refuse_several()
        if not self.is_global_zero:
            assert self._elsewhere is not None
            self._elsewhere.serve(trainer, self._worker, loaders[0])
            return
        if self._fit is not None and self._fit.running:
            self._fit.suspend()
            self._suspended.append(self._fit)
        gathering = Gathering(
            trainer,
            self.settings,
            self.cluster_environment,
            local_ranks=self.num_processes,
            num_nodes=self.num_nodes,
            generation=self._generation,
        )
        self._fit = CodedFit(trainer, self.settings, gathering, self._remembered, self.validation)
        self._fit.start()

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch; a training batch's transfer hooks draw the same random numbers on every rank."""
        if self._fit is None or not self._trainer.training:
            return super().batch_to_device(batch, device, dataloader_idx)
        return self._fit.transfer(lambda: super(LWPDStrategy, self).batch_to_device(batch, device, dataloader_idx))

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Rank 0's first data part; the version it belongs to is published before."""
        batch_index = self._trainer.fit_loop.epoch_loop.batch_idx
        output: STEP_OUTPUT = self._running.training_step(super().training_step, args, batch_index)
        return output

    def validation_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Of rank 0's share alone, where validation is shared."""
        if self.validation is None or self._trainer.state.fn is not TrainerFn.FITTING:
            return super().validation_step(*args, **kwargs)
        output: STEP_OUTPUT = self.validation.step(super().validation_step, args)
        return output

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backward of rank 0's data parts, then the exchange, so that ``on_after_backward`` sees decoded gradients."""
        module, precision = self._trainer.lightning_module, self.precision_plugin
        scaled = precision.pre_backward(closure_loss, module)
        self._running.backward(closure_loss, lambda: precision.backward(scaled, module, optimizer, *args, **kwargs))
        return precision.post_backward(scaled, module)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step as all ranks do: the workers have heard of the new version in rank 0's backward."""
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._fit is not None:
            self._fit.stepped()
        return result

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Add what senders remember, unless the weights alone are asked for."""
        if self._fit is not None and "optimizer_states" in checkpoint:
            self._fit.save(checkpoint)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Keep what senders remembered for the exchange that begins; rank 0 gives each worker its own."""
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        remembered = taken_from(checkpoint)
        if self.is_global_zero and self._trainer.state.fn is TrainerFn.FITTING:
            self._remembered = remembered
            if self._fit is not None and self._fit.running:  # a tuner in mid-fit leads back to where it began
                self._fit.remembered = remembered
        return checkpoint

    def on_train_end(self) -> None:
        """The fit is over: end the workers."""
        self._end_fit(completed=True)
        if self._suspended:
            self._fit = self._suspended.pop()

    def on_exception(self, exception: BaseException) -> None:
        """The fit broke: end the workers. One that SIGTERM ended gives the process the exit code that says so."""
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM  # Lightning leaves 0, as if the fit had been completed
        self._end_fit()
        super().on_exception(exception)

    def teardown(self) -> None:
        """End what is left of a fit."""
        self._end_fit()
        if self.validation is not None:
            self.validation.close()
            self.validation = None
        if self._elsewhere is not None:
            self._elsewhere.leave()
        super().teardown()

    def _end_fit(self, *, completed: bool = False) -> None:
        if self._fit is not None:
            self._fit.stop(completed=completed)


def _register() -> None:
    if LWPDStrategy.strategy_name not in StrategyRegistry.available_strategies():
        StrategyRegistry.register(
            LWPDStrategy.strategy_name, LWPDStrategy, description="Coded gradient exchange: K of n codewords a step."
        )


_register()
