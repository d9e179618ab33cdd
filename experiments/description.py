"""The text of `experiments.describe`: a code's figures, generator, layout, recovery and costs as tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwpd_lightning import Code
from lwpd_lightning.settings import ExchangeSettings

from .code_facts import (
    MAX_SETS,
    Arrivals,
    exactness,
    layout,
    recovery,
    size,
    span,
    tasks_text,
    workers_of_a_task,
)
from .report import compute_cost

_ROWS = 16  # of the generator, and of who computes what, that a terminal shows
_NUMBERS = 12  # columns of the generator that fit as numbers; more are shown as signs


def describe(settings: ExchangeSettings, scheme: str) -> None:
    """Print everything about the code of `settings`, which are resolved for its number of workers."""
    code = settings.code
    assert code is not None
    console = Console()
    worth = recovery(code, MAX_SETS)
    meaning, generator = _generator(code)
    sections = [
        (f"scheme {scheme}: {code.family} code", _listing([*figures(code), *costs(settings, worth)])),
        (f"generator ({meaning})", generator),
        ("who computes what", _layout(code)),
        ("what the first K codewords are worth", _recovery(worth, settings.waits[1])),
    ]
    for title, table in sections:
        console.print(Text(title, style="bold"))
        console.print(table)


def figures(code: Code) -> list[tuple[str, str]]:
    """(name, text) of what the generator is."""
    lo, hi = (round(bound, 9) + 0.0 for bound in code.frame_bounds)  # no -1e-17 and no -0
    tight = "tight" if code.is_tight else "not tight: no projective decoder"
    lines = [
        ("size", f"n={code.n} workers, k={code.k} tasks = {size(code)}"),
        ("weight", f"at most t={code.t} tasks in a codeword"),
        ("coherence", f"{code.coherence:.4g}, projective distance {code.projective_distance:.4g}"),
        ("frame bounds", f"{lo:.4g} to {hi:.4g}, {tight}"),
    ]
    if len(code.cycle) > 1:
        lines.append(("rows", f"change from version to version, {len(code.cycle)} take turns; the first is shown"))
    return lines


def costs(settings: ExchangeSettings, worth: Sequence[Arrivals]) -> list[tuple[str, str]]:
    """(name, text) of what a run with `settings` tolerates and pays; `worth` is the code's `recovery`."""
    code = settings.code
    assert code is not None
    few, many = workers_of_a_task(code)
    times = "once" if many == 1 else f"{few} times" if few == many else f"{few} to {many} times"
    return [
        ("decodes exactly", exactness(code, worth)),
        ("an update", f"waits for {waits(settings)} of {code.n}: {decoding(settings, worth)}"),
        ("compute", compute_cost(code)),
        ("redundancy", f"n/k = {code.n / code.k:.3g}; each task is computed {times}"),
        ("upload", upload(settings)),
    ]


def waits(settings: ExchangeSettings) -> str:
    """K in words."""
    least, most = settings.waits
    return f"K={most}" if settings.wait_for != "adaptive" else f"K={least} to {most} codewords, as the weather asks,"


def decoding(settings: ExchangeSettings, worth: Sequence[Arrivals]) -> str:
    """What the decoder of `settings` makes of K arrivals."""
    assert settings.code is not None
    at = worth[settings.waits[1] - 1]
    if settings.decoder == "projective":
        if at.error is None or (settings.error_feedback and len(settings.code.cycle) > 1):
            return "projective" + ", with error feedback" * settings.error_feedback
        return (
            f"projective, expected squared error {at.error:.3g} of the gradient's" if at.error else "projective, exact"
        )
    share = "all" if at.share == 1 else f"{at.share:.1%} of the"
    return f"{settings.decoder}, which succeeds on {share} {'' if at.all_tried else 'sampled '}sets of {at.count}"


def upload(settings: ExchangeSettings) -> str:
    """Size of a codeword against the whole gradient, in numbers and in bytes on the wire."""
    code = settings.code
    assert code is not None
    numbers = 1 << 20
    wire = settings.wire(torch.float32, torch.device("cpu"), seed=0)
    share = wire.nbytes(numbers) / (4 * numbers) / code.blocks
    part = f"1/{code.blocks} of the gradient's numbers" if code.blocks > 1 else "all of the gradient's numbers"
    return f"{part} a codeword; as {wire.name} {share:.3g} of its float32 bytes"


def _listing(lines: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, text)
    return table


def generator_rows(code: Code) -> tuple[str, list[list[str]]]:
    """What the entries mean, and for each worker one text a data part.

    Few columns are shown as numbers. More are shown as signs, and so are those of a single magnitude, which is named.

    >>> from lwpd_lightning import lwpd_code
    >>> generator_rows(lwpd_code(4, 4, 2))[1][1]
    ['+-', '..']
    """
    entries = code.generator
    magnitudes = entries[entries != 0].abs()
    flat = float(magnitudes.max() - magnitudes.min()) < 1e-9
    signs = flat or code.k > _NUMBERS
    if signs:
        scale = (
            f"{float(magnitudes[0]):.4g}" if flat else f"{float(magnitudes.min()):.2g} to {float(magnitudes.max()):.2g}"
        )
        meaning = f"+ and - are {'' if flat else 'of magnitude '}{scale}, . is 0"
    else:
        meaning = ". is 0"

    def cell(values: list[float]) -> str:
        if signs:
            return "".join("." if v == 0 else "+" if v > 0 else "-" for v in values)
        return " ".join(f"{'.':>5}" if v == 0 else f"{v:+.2f}" for v in values)

    rows = [[cell(part) for part in code.coefficients(worker).tolist()] for worker in range(code.n)]
    return meaning, rows


def _generator(code: Code) -> tuple[str, Table]:
    meaning, rows = generator_rows(code)
    joined = code.data_parts > 6  # columns that would not fit side by side
    between = "" if code.blocks == 1 and code.k > _NUMBERS else " "
    table = Table()
    table.add_column("worker", justify="right", no_wrap=True)
    for part in range(1 if joined else code.data_parts):
        table.add_column("all parts" if joined else f"part {part}", no_wrap=True)
    shown = _ROWS if code.n > _ROWS else code.n
    for worker, row in enumerate(rows[:shown]):
        table.add_row(str(worker), *([between.join(row)] if joined else row))
    if code.n > shown:
        table.caption = f"{code.n - shown} more rows are in the picture"
    return meaning, table


def _layout(code: Code) -> Table:
    groups = layout(code)
    table = Table()
    table.add_column("workers", justify="right", no_wrap=True)
    table.add_column("tasks", overflow="fold")
    table.add_column("share of the batch", justify="right")
    for group in groups[:_ROWS]:
        table.add_row(span(group.workers), tasks_text(group, code), f"{len(group.blocks) / code.data_parts:.3g}")
    if len(groups) > _ROWS:
        table.caption = f"and {len(groups) - _ROWS} more groups of workers"
    return table


def notable(worth: Sequence[Arrivals], wait_for: int) -> list[Arrivals]:
    """The lines of a recovery profile worth printing: where the share moves, K, and the ends."""
    last = len(worth) - 1
    if last < _ROWS:
        return list(worth)

    def moves(i: int) -> bool:
        return worth[i].share != worth[max(i - 1, 0)].share or worth[i].share != worth[min(i + 1, last)].share

    return [at for i, at in enumerate(worth) if i in (0, last) or at.count == wait_for or moves(i)]


def _recovery(worth: Sequence[Arrivals], wait_for: int) -> Table:
    table = Table()
    for name in ("K", "hold the exact gradient", "sets of K tried"):
        table.add_column(name, justify="right")
    if worth[0].error is not None:
        table.add_column("projective: squared error", justify="right")
    for at in notable(worth, wait_for):
        share = {0.0: "none", 1.0: "all"}.get(at.share, f"{at.share:.2%}")
        of = f"{at.sets:,}" if at.sets < 10**6 else f"{float(at.sets):.2g}"
        tried = f"all {of}" if at.all_tried else f"{at.tried:,} of {of}"
        error = [] if at.error is None else [f"{at.error:.3g}"]
        table.add_row(f"{at.count}", share, tried, *error, style="bold" if at.count == wait_for else "")
    return table
