"""Draw every picture of the manual again: `python -m experiments.manual`, in a checkout.

Those of results are read from the tables in docs/results.md, so that no figure stands in two places.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lwpd_lightning import lwpd_code

from ..drawing import draw
from . import results, tasks, update

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.manual", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    parser.add_argument("--out", type=Path, help="folder of the pictures; default: pictures/ beside the pages")
    options = parser.parse_args()
    out = options.out or options.docs / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    raced = results.read((options.docs / "results.md").read_text())
    results.draw_times(raced, out / "race.svg")
    results.draw_bytes(raced, out / "bytes.svg")
    tasks.draw(lwpd_code(8, 4, 2), out / "tasks.svg")
    update.draw(out / "update.svg")
    draw(lwpd_code(8, 4, 2), 6, out / "code.png")
    print(f"drawn to {out}")


if __name__ == "__main__":
    main()
