"""What a codeword takes on the wire: ``python -m experiments.bench.upload`` (root, Linux, iproute2; about 2 minutes).

The race's ranks train for a fixed number of updates on hosts of their own, and the counters of the hosts' interfaces
say what travelled. Codewords (up) and decoded gradients (down) pass the same interfaces and even the same connections,
so arithmetic tells them apart: for a run of N updates in which W codewords crossed the wire, all hosts together send

    T = S + W c + N h D,

S at the start and the end, c for a codeword, D for a decoded gradient to all ranks, h = 1 with update_dtype=float32 and
0.251 with int8. (With equal W and N, S = 0 and h = 1/4 that is W c = (4 T(int8) - T(float32)) / 3.) Four runs, a short
and a long one of each, give S, c and D by least squares, and what is left over says how well that describes the counts.
An update that A codewords counted in moves A - 1: each is cut among those who add up, whose own slices stay at home.

What hosts send holds more than values, and all of it is counted: headers of Ethernet, IP, TCP and of the messages, the
acknowledgements of what they received, and retransmissions. Kernels hand segments of up to 64 kB to a virtual
interface, which counts one header for each; here they are cut to Ethernet's 1500 bytes first, as on a cable. Nothing
is lost here, yet TCP probes for losses after two round trips, which are microseconds where the receiver has to wait for
one of few cores: half a percent of all bytes, by chance, so that probing is switched off. What an update takes beside
values (who is ready, who counts, the new version, heartbeats) does not halve with h and so falls to the codewords: c is
too large by it, if anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

import lightning.pytorch as pl
import numpy as np

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from rich.console import Console
    from rich.table import Table

from lwpd_lightning.coding.wire import wire_format

from ..console import open_console
from .race.plan import Race
from .race.testbed import Host, refuse_missing_tools

BASELINE, CODED, T = "k_async", "lwpd", 2  # conf/code/lwpd_8_4_2
DTYPES = "float32", "int8"  # of decoded gradients: far apart, so that chance in the counts weighs little
LENGTHS = (4, 26)  # updates of a run
TOLERANCE = 0.01
_LINKS = "1000"  # Mbit/s, more than eight ranks of one machine can fill
_LIMIT_S = 120.0


@dataclass(frozen=True, order=True)
class FixedRun(Race):
    """A race of ``max_steps`` updates, whatever accuracy they reach, with decoded gradients in ``update_dtype``."""

    update_dtype: str = "float32"
    max_steps: int = 1

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.scheme}-{self.update_dtype}-{self.max_steps}"

    def overrides(self) -> list[str]:
        """Hydra overrides of `experiments.train`, the same on every rank."""
        return [
            *super().overrides(),
            "callbacks.stop=null",
            f"trainer.max_steps={self.max_steps}",
            "scheme.strategy.compressor=plain",
            f"scheme.strategy.update_dtype={self.update_dtype}",
            f"+callbacks.cable._target_={__package__}.upload.Cable",
        ]


class Cable(pl.Callback):
    """Lets the interface of each rank's host count what a cable would carry."""

    on_workers = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the first connection to another host, which would keep the size of its segments."""
        command = ["ip", "link", "set", "dev", Host.interface, "gso_max_segs", "1"]
        subprocess.run(command, check=True, capture_output=True)
        Path("/proc/sys/net/ipv4/tcp_early_retrans").write_text("0")


class Shares(NamedTuple):
    """What the bytes that all hosts sent went into.

    Attributes:
        fixed: bytes of a run's start and end.
        codeword: bytes of one codeword.
        update: bytes of one decoded gradient to all ranks, in float32.
        unexplained: largest difference to a run's count, as a share of the codewords of the longest run.
    """

    fixed: float
    codeword: float
    update: float
    unexplained: float


def separate(rows: Iterable[dict[str, Any]]) -> Shares:
    """Codewords and decoded gradients apart, from rows of one scheme: `ranks.run`'s of a `FixedRun`.

    Raises:
        ValueError: for rows that leave it open, of fewer than two lengths or dtypes; for runs that sent whole states
            beside, to workers that had missed too much.
    """
    rows = list(rows)
    if any(row["resyncs"] for row in rows):
        raise ValueError("a worker missed so much that it took over rank 0's whole state: run it again, less loaded.")
    codewords = np.array([row["updates"] * (row["arrivals_mean"] - 1) for row in rows])
    gradients = np.array([row["updates"] * _share_of_float32(row) for row in rows])
    terms = np.stack([np.ones(len(rows)), codewords, gradients], axis=1)
    if np.linalg.matrix_rank(terms) < terms.shape[1]:
        raise ValueError("runs of two lengths and of two dtypes of the update are needed to tell codewords apart.")
    sent = np.array([sum(row["sent"]) for row in rows], dtype=float)
    found = np.linalg.lstsq(terms, sent, rcond=None)[0]
    fixed, codeword, update = (float(value) for value in found)
    left_over = np.abs(terms @ found - sent).max()
    return Shares(fixed, codeword, update, unexplained=float(left_over / (codeword * codewords.max())))


def _planned(scheme: str, update_dtype: str = "float32", max_steps: int = 1) -> FixedRun:
    return FixedRun("mlp", _LINKS, "none", scheme, 0, 0, update_dtype=update_dtype, max_steps=max_steps)


def _share_of_float32(row: dict[str, Any]) -> float:
    nbytes = wire_format(row["update_dtype"]).nbytes(row["parameters"])
    return nbytes / wire_format("float32").nbytes(row["parameters"])


def main() -> None:
    """Run, print what travelled, and exit with 1 where the coded upload is more than 1/t of the baseline's."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.upload", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/upload"))
    out = parser.parse_args().out
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # no host and no rank is left behind
    try:
        refuse_missing_tools()
    except OSError:
        sys.exit("hosts with interfaces of their own need root and iproute2: run as root, with ip and tc installed.")
    # Imported once, for all ranks of all runs.
    from .. import job, report  # noqa: F401
    from .race.ranks import run

    console = open_console()
    rows: dict[str, list[dict[str, Any]]] = {}
    for scheme in (BASELINE, CODED):
        for length in LENGTHS:
            for dtype in DTYPES:
                planned = _planned(scheme, dtype, length)
                shutil.rmtree(out / planned.name, ignore_errors=True)
                with console.status(f"{scheme}, {length} updates in {dtype}"):
                    row = run(planned, out / planned.name, _LIMIT_S)
                if row["failed"]:
                    sys.exit(f"{planned.name}: {row['failed']}")
                rows.setdefault(scheme, []).append(row)
    sys.exit(_report(console, rows))


def _report(console: Console, rows: dict[str, list[dict[str, Any]]]) -> int:
    try:
        shares = {scheme: separate(found) for scheme, found in rows.items()}
    except ValueError as error:
        sys.exit(str(error))
    wait_for = _planned(CODED).wait_for  # and the baseline's
    assert wait_for is not None
    table = Table(title="bytes that all hosts sent, by their interfaces' counters")
    for column in ("scheme", "a codeword's values", "a codeword", "beside values", f"an update's at K = {wait_for}",
                   "counted on average", "a decoded gradient to all", "unexplained"):  # fmt: skip
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for scheme, share in shares.items():
        longest = max(rows[scheme], key=lambda row: row["updates"])
        values = 4 * longest["parameters"] / (T if scheme == CODED else 1)
        table.add_row(
            scheme,
            f"{values:,.0f}",
            f"{share.codeword:,.0f}",
            f"{share.codeword / values - 1:.2%}",
            f"{(wait_for - 1) * share.codeword:,.0f}",
            f"{longest['arrivals_mean']:.2f}",
            f"{share.update:,.0f}",
            f"{share.unexplained:.2%}",
        )
    console.print(table)
    ratio = shares[CODED].codeword / shares[BASELINE].codeword
    within = ratio * T <= 1 + TOLERANCE
    console.print(
        f"{CODED} uploads {ratio:.4f} of {BASELINE}'s bytes, headers included: {ratio * T - 1:+.2%} beside "
        f"1/t = {1 / T}, {'within' if within else 'not within'} {TOLERANCE:.0%}."
    )
    return 0 if within else 1


if __name__ == "__main__":
    main()
