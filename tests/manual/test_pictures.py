"""One command draws the manual's pictures, those of results from the tables that the page shows."""

import re
import subprocess
import sys

import pytest

from experiments.manual import results
from tests.commands import PATIENCE_S
from tests.manual.pages import CURRENT, ROOT, text

OF_A_RACE = {"crossover.png"}


@pytest.mark.slow
def test_one_command_draws_every_picture_that_a_page_shows(tmp_path):
    command = [sys.executable, "-m", "experiments.manual", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    shown = {name for page in CURRENT for name in re.findall(r"!\[[^]]+\]\([\w/]*?([\w-]+\.(?:svg|png))\)", text(page))}

    drawn = {path.name for path in tmp_path.iterdir() if path.stat().st_size > 1000}
    assert drawn == shown - OF_A_RACE == {path.name for path in (ROOT / "docs/pictures").iterdir()} - OF_A_RACE


def test_a_row_of_a_race_is_read():
    page = "### Links of 100 Mbit/s, no stragglers\n\ntext\n\n"
    page += "| scheme | time to target | updates | KB/rank |\n|---|---|---|---|\n"
    page += "| sketch | 5.1 (4.6..13.6) s | 35 | 141 |\n| sync | 12.7 s | 55 |  |\n\n### Next\n"

    rows = results.table(page, "Links of 100 Mbit/s, no stragglers")

    assert [row["scheme"] for row in rows] == ["sketch", "sync"]
    assert [results._raced(row) for row in rows] == [
        ("sketch", (4.6, 5.1, 13.6), pytest.approx(4.935)),
        ("sync", (12.7, 12.7, 12.7), None),
    ]


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no table below 'Links"):
        results.read("# Results\n\n| scheme |\n|---|\n")
