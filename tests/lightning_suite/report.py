"""What became of Lightning's tests, beside `expected.toml`: ``python -m tests.lightning_suite.report <results>``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.lightning_suite.plugin import records

Kind = Literal["refusal", "difference", "assumption"]
EXPECTED = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True)
class Reason:
    """Why some tests cannot pass.

    Attributes:
        kind: "refusal": README says that coded exchange does not do this; "difference": README or docs say that it does
            it otherwise; "assumption": the test asks for what is no promise of Lightning to its users (its own
            strategies' classes, processes or private calls).
        why: the reason, in a sentence.
        match: what the failure says; another failure of the same test is not expected.
        tests: names below tests_pytorch; one without brackets stands for all its parameters.
    """

    kind: Kind
    why: str
    match: str
    tests: tuple[str, ...]

    def explains(self, record: dict[str, Any]) -> bool:
        """Whether this is the failure that was expected."""
        if (self.kind == "refusal") != (record["kind"] == "refusal"):
            return False
        name = record["test"]
        return self.match in record["message"] and (name in self.tests or name.split("[", 1)[0] in self.tests)


def expected() -> list[Reason]:
    """The reasons in `EXPECTED`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pytest's own
    entries = tomllib.loads(EXPECTED.read_text())["reason"]
    return [Reason(e["kind"], e["why"], e.get("match", ""), tuple(e["tests"])) for e in entries]


def outcomes(out: Path, name: str) -> list[dict[str, Any]]:
    """A record for each test: the second run's where the first failed, "unforced" where it fails without us too."""
    final = {record["test"]: record for record in records(out / f"{name}.jsonl")}
    final |= {record["test"]: record for record in records(out / f"{name}.again.jsonl")}
    for record in records(out / f"{name}.unforced.jsonl"):
        if record["outcome"] == "failed":
            final[record["test"]] = {**final[record["test"]], "outcome": "unforced"}
    return list(final.values())


def parts(out: Path) -> list[str]:
    """The parts that were run into ``out``."""
    names = (path.name.removesuffix(".jsonl") for path in out.glob("*.jsonl"))
    return sorted(name for name in names if not name.endswith((".again", ".unforced")))


def counts(tests: list[dict[str, Any]], reasons: list[Reason]) -> tuple[Counter[str], list[dict[str, Any]]]:
    """How many tests ended how, and the failures that nobody expected."""
    counted: Counter[str] = Counter()
    surprises = []
    for record in tests:
        ending = record["outcome"]
        if ending == "failed":
            reason = next((reason for reason in reasons if reason.explains(record)), None)
            ending = reason.kind if reason is not None else "unexpected"
            if reason is None:
                surprises.append(record)
        counted[ending] += 1
        if ending == "passed" and record.get("fits"):
            counted["of them trained over coded exchange"] += 1
    return counted, surprises


def describe(name: str, out: Path) -> str:
    """One line on a part."""
    counted, _ = counts(outcomes(out, name), expected())
    return f"{name}: " + ", ".join(f"{count} {ending}" for ending, count in counted.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print counts, unexpected failures and expectations that nothing met; 1 where there are any such failures."""
    parser = argparse.ArgumentParser(description="Compare results of tests.lightning_suite.run with what is expected.")
    parser.add_argument("out", type=Path, help="the directory given to run as --out")
    out: Path = parser.parse_args(arguments).out
    reasons, names = expected(), parts(out)
    tests = [record for name in names for record in outcomes(out, name)]
    for name in names:
        print(describe(name, out))
    counted, surprises = counts(tests, reasons)
    ran = len(tests) - counted["skipped"] - counted["unforced"]
    print(f"\n{ran} tests counted (not those skipped, nor those that fail without coded exchange too):")
    for ending, count in counted.most_common():
        print(f"{count:6} {ending}")
    for record in surprises:
        lines = record["message"].strip().splitlines() or [record.get("error", "")]
        print(f"\n{record['test']}\n    {record['kind']}: {record.get('error', '')} {lines[0][:300]}")
    failed = [record for record in tests if record["outcome"] == "failed"]
    for reason in reasons:
        if not any(reason.explains(record) for record in failed):
            print(f"\nexpected and not seen ({reason.kind}): {reason.why}")
    return 1 if surprises else 0


if __name__ == "__main__":
    raise SystemExit(main())
