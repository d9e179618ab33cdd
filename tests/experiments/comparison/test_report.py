"""The W&B Report is built whole without a network; saving it is W&B's."""

import pytest

from experiments.comparison import report, table
from experiments.comparison.baselines import baselines
from experiments.comparison.groups import group
from tests.experiments.comparison.runs import run


def test_a_report_holds_the_table_and_panels_of_the_groups():
    pytest.importorskip("wandb_workspaces")
    groups = group([run(scheme, seed) for scheme in ("lwpd", "ddp") for seed in (0, 1)])
    cells = table.cells(table.rows(groups, baselines(groups, None)[0], "wall"))

    made = report.build("team/project", "four runs", cells, groups)

    sent = made._to_model().model_dump(by_alias=True)  # what `save` would send
    assert (sent["project"]["entityName"], sent["project"]["name"]) == ("team", "project")
    (text,) = (block["content"] for block in sent["spec"]["blocks"] if block["type"] == "markdown-block")
    assert len(text.splitlines()) == 2 + len(groups)
    assert text.splitlines()[2].startswith("| lwpd | 2 | 0.95 (0.95..0.95) |")
    (grid,) = (block for block in sent["spec"]["blocks"] if block["type"] == "panel-grid")
    (runs,) = grid["metadata"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["scheme.value.name"]
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    assert any(panel["config"].get("metrics") == ["val_acc"] for panel in panels)


def test_runs_are_grouped_by_the_wait_for_that_counted():
    pytest.importorskip("wandb_workspaces")
    groups = group([run(summary={"wait_for": wait_for}) for wait_for in (4, 6)])

    made = report.build("team/project", "two runs", ([], []), groups)

    (grid,) = (block for block in made._to_model().spec.blocks if block.type == "panel-grid")
    (runs,) = grid.metadata.run_sets
    # code.wait_for is what a scheme starts from, and may replace: sync waits for all.
    assert [key.name for key in runs.grouping] == ["scheme.value.strategy.wait_for"]


def test_a_report_that_is_not_saved_is_a_sentence():
    class Unreachable:
        def save(self):
            raise ConnectionError("nobody\n  answers")

    with pytest.raises(ValueError, match=r"^--report was not saved: nobody answers$"):
        report.save(Unreachable())
