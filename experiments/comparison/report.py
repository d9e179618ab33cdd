"""The comparison as a W&B Report: the same table, and W&B's own panels over the project's runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .groups import Group
from .table import NOTE


def build(project: str, title: str, table: tuple[list[str], list[list[str]]], groups: Sequence[Group]) -> Any:
    """The Report (`wandb_workspaces.reports.v2.Report`) of `entity/project`, not saved; needs no network.

    Raises:
        ModuleNotFoundError: the extra `report` is not installed.
    """
    # Of the extra `report`.
    import wandb_workspaces.reports.v2 as wr

    entity, _, name = project.partition("/")
    keys = [key for key in groups[0].values if not key.startswith("target.")]
    # A run set that names no project is of the report's own.
    runset = wr.Runset(name="finished runs", filters="State = 'finished'", groupby=[_config_key(key) for key in keys])
    spread: dict[str, Any] = {"groupby_aggfunc": "median", "groupby_rangefunc": "minmax"}
    metrics = dict.fromkeys(one.metric for one in groups)
    panels = [
        *(
            wr.LinePlot(title=f"{metric} by update", x="trainer/global_step", y=[metric], **spread)
            for metric in metrics
        ),
        wr.LinePlot(title="wall time at each validation (s)", x="trainer/global_step", y=["val_wall_s"], **spread),
        wr.LinePlot(title="mean staleness (updates)", x="trainer/global_step", y=["exchange/staleness_mean"], **spread),
        wr.LinePlot(title="inclusion rate by worker", x="trainer/global_step", metric_regex="exchange/inclusion/.*"),
        wr.LinePlot(title="bytes up an update", x="trainer/global_step", y=["exchange/bytes_up"], **spread),
    ]
    blocks = [
        wr.H2("Table"),
        wr.MarkdownBlock(text=_markdown(*table)),
        wr.P(NOTE),
        wr.H2("Curves"),
        wr.PanelGrid(runsets=[runset], panels=panels),
    ]
    return wr.Report(entity=entity, project=name, title=title[:128], blocks=blocks)


def save(report: Any) -> str:
    """Save a Report at W&B; returns its address.

    Raises:
        ValueError: it was not saved; the reason is W&B's.
    """
    try:
        report.save()
    except Exception as error:  # the client raises whatever a lost connection leads to
        raise ValueError(f"--report was not saved: {' '.join(str(error).split())}") from None
    return str(report.url)


def _config_key(key: str) -> str:
    named = {"scheme": "scheme.name", "wait_for": "scheme.strategy.wait_for", "world_size": "code.n"}
    return "config." + named.get(key, key)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *([_one_line(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _one_line(cell: str) -> str:
    first, _, second = cell.replace("|", "\\|").partition("\n")
    return f"{first} ({second})" if second else first
