"""The notebook runs from its first cell to its last, and what it keeps as outputs is of such a run."""

import pytest

from tests.commands import PATIENCE_S
from tests.manual.pages import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra `dev`)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra `dev`)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra `dev`)")

NOTEBOOK = ROOT / "experiments/examples/first_look.ipynb"
pytestmark = pytest.mark.real_start


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs), [
        o for o in outputs if "image/png" in o.get("data", {})
    ]


def test_it_runs_and_two_workers_are_lost_and_two_curves_drawn(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept, kept_pictures = printed(notebook)

    nbclient.NotebookClient(
        notebook, timeout=PATIENCE_S, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    text, pictures = printed(notebook)

    assert "worker 2 was lost" in text
    assert "worker 5 was lost" in text
    assert [line.split(":")[0] for line in text.splitlines() if "after" in line and "accuracy" in line] == [
        "sync",
        "lwpd",
    ]
    assert len(pictures) == len(kept_pictures) == 2
    assert kept.count("\n") >= 20
