"""Progress of a fit: a live bar on a terminal, and where there is none a plain line now and then."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .job_label import is_beside_others, labelled
from .report import readable_bytes

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lwpd_lightning.exchange.update import Update

_RECENT = 50  # updates over which arrivals and staleness are averaged


def _epochs(trainer: pl.Trainer) -> int | None:
    """How many epochs the fit has, those that are begun counted, whichever of max_epochs and max_steps ends it."""
    limits = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs > 0 else []
    updates = trainer.num_training_batches / trainer.accumulate_grad_batches  # of an epoch
    if trainer.max_steps > 0 and 0 < updates < math.inf:
        limits.append(math.ceil(trainer.max_steps / updates))
    return min(limits, default=None)


def is_interactive(console: Console) -> bool:
    """Whether lines can be redrawn: a terminal that understands it, this job's alone, no continuous integration."""
    redraws = console.file.isatty() and not console.is_dumb_terminal
    return redraws and not os.environ.get("CI") and not is_beside_others()


class ExchangeProgressBar(ProgressBar):
    """Updates, their rate and the time left, with what the exchange does: arrivals, staleness, bytes saved.

    "Saved" is against sending the whole gradient in place of each codeword that travelled, which are one less in an
    update than counted. A strategy without coded exchange has none of these figures. Nothing is drawn before the first
    batch, when all workers run: a forked worker must not inherit a display.

    Args:
        refresh_s: seconds between two drawings of the bar.
        line_every_s: seconds between two lines where standard output is no terminal or other jobs', or CI is set.
    """

    def __init__(self, refresh_s: float = 0.1, line_every_s: float = 30.0) -> None:
        super().__init__()
        self.refresh_s, self.line_every_s = refresh_s, line_every_s
        self._enabled = True
        self._forget()

    def _forget(self) -> None:
        self._console = Console()
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._figures = Text(no_wrap=True, overflow="ellipsis")
        self._recent: deque[Update] = deque(maxlen=_RECENT)
        self._uploads = self._bytes_up = self._gradient_bytes = 0
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._shown_at = time.monotonic()
        self._epoch = 1  # that is under way; Lightning counts on before a fit's last state is shown

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False
        self._close()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        self._console.print(sep.join(map(str, args)), markup=False, highlight=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what happens next, which takes a while where workers rerun the job."""
        if self._enabled and is_interactive(self._console):
            self._console.print(f"starting {trainer.world_size} processes", style="dim", highlight=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open the display at the first batch of a fit."""
        if self._progress is None and self._enabled:
            self._open(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the update, and show it if the last drawing is old enough."""
        if self._progress is None:
            return
        update: Update | None = getattr(trainer.strategy, "last_update", None)
        if update is not None:
            self._recent.append(update)
            self._uploads += update.uploads
            self._bytes_up += update.bytes_up
        self._progress.update(self._task, completed=trainer.global_step)
        if time.monotonic() - self._shown_at >= (self.refresh_s if self._live else self.line_every_s):
            self._show(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the epoch."""
        self._epoch = trainer.current_epoch + 1
        self._name(trainer, "")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why updates pause."""
        self._name(trainer, ", validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on counting."""
        self._name(trainer, "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._name(trainer, "")
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()
        self._epoch = trainer.current_epoch + 1
        total = trainer.estimated_stepping_batches
        self._gradient_bytes = sum(p.nbytes for p in pl_module.parameters() if p.requires_grad)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.fields[end]} updates"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            auto_refresh=False,
            expand=True,
        )
        self._task = self._progress.add_task(
            "",
            completed=trainer.global_step,
            total=None if math.isinf(total) else total,
            end="?" if math.isinf(total) else str(int(total)),
            rate="",
        )
        if is_interactive(self._console):
            # Without a refreshing thread: a process that forks while another thread draws can inherit a locked lock.
            self._live = Live(Group(self._progress, self._figures), console=self._console, auto_refresh=False)
            before = {sys.stdout: "stdout", sys.stderr: "stderr"}
            self._live.start()
            # Prints now appear above the bar; what is logged does too once its handlers know.
            for handler in _stream_handlers():
                if handler.stream in before:
                    self._moved.append((handler, handler.setStream(getattr(sys, before[handler.stream]))))
        self._name(trainer, "")

    def _close(self) -> None:
        live, self._live, self._progress = self._live, None, None
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []
        if live is not None:
            live.stop()

    def _name(self, trainer: pl.Trainer, doing: str) -> None:
        if self._progress is None:
            return
        epochs = _epochs(trainer)
        of = "" if epochs is None else f"/{epochs}"
        self._progress.update(self._task, description=f"epoch {self._epoch}{of}{doing}")
        if self._live is not None:
            self._show(trainer)

    def _show(self, trainer: pl.Trainer) -> None:
        assert self._progress is not None
        self._shown_at = time.monotonic()
        task = self._progress.tasks[self._task]
        rate = f"{task.speed:.3g}/s" if task.speed else ""
        figures = [*self._exchange(trainer), *_metrics(trainer)]
        if self._live is not None:
            self._progress.update(self._task, rate=rate)
            self._figures.plain = " · ".join(figures)
            self._live.refresh()
            return
        counted = f"update {task.completed:.0f}/{task.fields['end']}"
        left = f"{_duration(task.time_remaining)} left" if task.time_remaining is not None else ""
        line = labelled(", ".join(filter(None, [counted, rate, left, *figures])))
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _exchange(self, trainer: pl.Trainer) -> list[str]:
        if not self._recent:
            return []
        workers, updates = len(self._recent[-1].inclusion), len(self._recent)
        staleness = [arrival.staleness for update in self._recent for arrival in update.arrivals]
        lost = workers - self._recent[-1].live
        whole = self._uploads * self._gradient_bytes
        saved = whole - self._bytes_up
        return [
            f"arrivals {len(staleness) / updates:.3g}/{workers}" + (f", {lost} lost" if lost else ""),
            f"staleness {sum(staleness) / len(staleness):.2f}",
            f"saved {readable_bytes(saved)} ({saved / whole:.0%})" if saved > 0 else "saved nothing",
        ]


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    # Between the names of loggers lie placeholders for their parents.
    named = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    handlers = dict.fromkeys(handler for logger in (logging.root, *named) for handler in logger.handlers)
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]


def _metrics(trainer: pl.Trainer) -> list[str]:
    return [f"{name} {float(value):.3g}" for name, value in trainer.progress_bar_metrics.items()]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
