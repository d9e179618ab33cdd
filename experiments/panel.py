"""What a run says before it starts: the code, who computes what, what an update waits for and what it survives."""

from __future__ import annotations

import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from lwpd_lightning import LWPDStrategy
from lwpd_lightning.coding import BlockMap
from lwpd_lightning.settings import ExchangeSettings

from .code_facts import exactness, layout, recovery, size, span, tasks_text
from .description import decoding, waits
from .job import Job
from .job_label import labelled
from .progress import is_interactive
from .report import compute_cost, readable_bytes
from .typed_command import beside

_GROUPS = 8  # groups of workers that are listed


def announce(job: Job, scheme: str) -> None:
    """Print the panel, or a single line where standard output is no terminal."""
    console = Console()
    lines = rows(job)
    if not is_interactive(console):
        figures = dict(lines)
        sentences = {"model": "", "decodes exactly": "decodes exactly ", "an update": "an update "}
        kept = [start + figures[name] for name, start in sentences.items() if name in figures]
        line = labelled(f"scheme {scheme}: {'; '.join(kept)}")
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, text)
    console.print(Panel(Group(table), title=escape(labelled(f"scheme {scheme}")), title_align="left", expand=False))


def rows(job: Job) -> list[tuple[str, str]]:
    """(name, text) of each line of the panel; a scheme without a code has the first ones only."""
    trainable = [p for p in job.model.parameters() if p.requires_grad]
    # Lightning converts the module later, when the fit begins.
    double = isinstance(job.trainer.precision_plugin, DoublePrecision)
    nbytes = sum(p.numel() * torch.float64.itemsize if double else p.nbytes for p in trainable)
    extent = f"{sum(p.numel() for p in trainable):,} parameters, {readable_bytes(nbytes)}"
    facts = job.data.facts
    lines = [
        ("model", f"{type(job.model).__name__}, {extent}"),
        ("data", f"{type(job.data).__name__}, {facts['train_samples']:,} samples, {job.data.batch_size} an update"),
    ]
    strategy = job.trainer.strategy
    if not isinstance(strategy, LWPDStrategy):
        return [*lines, ("workers", f"{job.trainer.world_size}, without a code")]
    code, settings, worth = strategy.code, strategy.settings, recovery(strategy.code)
    lines += [
        (
            "code",
            f"{code.family}: n={code.n} k={code.k} t={code.t}, {size(code)}",
        ),
        (
            "figures",
            f"coherence {code.coherence:.3g}, {'tight' if code.is_tight else 'not tight'}, {compute_cost(code)}",
        ),
    ]
    groups = layout(code)
    for group in groups[:_GROUPS]:
        who = f"worker{'s' * (len(group.workers) > 1)} {span(group.workers)}"
        lines.append((who, tasks_text(group, code)))
    if len(groups) > _GROUPS:
        lines.append(("", f"and {len(groups) - _GROUPS} more groups of workers: {beside('describe')}"))
    if len(code.cycle) > 1:
        lines.append(("rows", "change from version to version"))
    return [
        *lines,
        ("decodes exactly", exactness(code, worth)),
        ("an update", f"waits for {waits(settings)} of {code.n}: {decoding(settings, worth)}"),
        ("upload", _upload(settings, BlockMap(trainable, code.blocks), double)),
    ]


def _upload(settings: ExchangeSettings, blocks: BlockMap, double: bool) -> str:
    dtype = torch.float64 if double else blocks.dtype
    wire = settings.wire(dtype, blocks.device, seed=0)
    codeword, gradient = wire.nbytes(blocks.block_size), blocks.numel * dtype.itemsize
    return f"{readable_bytes(codeword)} a codeword ({wire.name}), {codeword / gradient:.0%} of the whole gradient"
