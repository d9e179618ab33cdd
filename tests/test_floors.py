"""An import only ever goes down: what each folder of the package may know."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lwpd_lightning"
MAY_KNOW = {
    "coding": set(),
    "rule": {"coding"},
    "links": set(),
    "reduction": {"coding", "links"},
    "exchange": {"coding", "rule", "links", "reduction"},
    "injection": {"data", "worker_callback"},
}
LIGHTNING = {"injection"}  # floors that know it


def imported(file):
    """Top-level names that a module imports, those of the package by the room: (ours, others)."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "lwpd_lightning":
            names = [f"lwpd_lightning.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "lwpd_lightning":
                ours.add(rest[0] if rest else "")
            else:
                others.add(first)
    return ours, others


@pytest.mark.parametrize("floor", MAY_KNOW)
def test_a_floor_imports_only_what_is_below_it(floor):
    files = sorted((PACKAGE / floor).glob("*.py"))
    assert len(files) > 1
    for file in files:
        ours, others = imported(file)
        assert ours - {floor} <= MAY_KNOW[floor], file.name
        assert "lightning" not in others or floor in LIGHTNING, file.name


def test_nothing_in_the_package_imports_experiments():
    for file in PACKAGE.rglob("*.py"):
        assert "experiments" not in imported(file)[1], file


def test_a_wrong_import_would_be_seen(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "import lightning.pytorch as pl\nfrom lwpd_lightning import strategy\nimport lwpd_lightning.links.keys"
    )
    assert imported(file) == ({"strategy", "links"}, {"lightning"})


def test_the_exchange_stays_small():
    assert len([file for file in (PACKAGE / "exchange").glob("*.py") if file.name != "__init__.py"]) <= 10


def test_a_long_module_says_why():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 350 or "\nLong because " in (ast.get_docstring(ast.parse(text)) or ""), file
