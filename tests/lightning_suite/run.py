"""Runs Lightning's own tests under coded exchange: ``python -m tests.lightning_suite.run --help``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.lightning_suite.plugin import records
from tests.lightning_suite.report import describe

FOLDERS = ("loops", "callbacks", "checkpointing", "models", "tuner", "trainer", "core", "profilers", "loggers")
# Their checkpoints are not in the repository.
_LEFT_OUT = ("checkpointing/test_legacy_checkpoints.py",)
_PROJECT = Path(__file__).parents[2]
_FINISHED = (0, 1, 5)  # pytest: all passed, some failed, none left to run


def run_tests(suite: Path, tests: Iterable[str], results: Path, *, forced: bool, timeout_s: int) -> None:
    """Run ``tests`` (paths or ids below tests_pytorch), starting again behind each that hangs or kills its process."""
    folder = suite / "tests"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=long", "--color=no", "--capture=fd"),
        *("-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "tests.lightning_suite.plugin"),
        *(f"--timeout={timeout_s}", "--timeout-method=signal", f"--lwpd-results={results.absolute()}"),
        *(() if forced else ("--lwpd-unforced",)),
        *(f"--ignore=tests_pytorch/{test}" for test in _LEFT_OUT),
        *(f"tests_pytorch/{test}" for test in tests),
    ]
    environment = {**os.environ, "PYTHONPATH": str(_PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    with results.with_suffix(".log").open("a") as log:
        while True:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            code = _watched(process, results, 2 * timeout_s)
            running = [record["test"] for record in records(results) if record["outcome"] == "started"]
            if code in _FINISHED and not running:
                return
            if not running:
                raise SystemExit(f"pytest ended with {code} outside of any test: see {results.with_suffix('.log')}")
            for test in running:
                _append(results, test, f"the test's process hung or ended with {code}")


def _watched(process: subprocess.Popen[bytes], results: Path, silence_s: int) -> int:
    """Wait for the end of ``process``; end it and what it started where no test begins or ends for ``silence_s``."""
    size = -1
    try:
        while True:
            try:
                return process.wait(silence_s)
            except subprocess.TimeoutExpired:
                now = results.stat().st_size if results.exists() else 0
                if now == size:
                    return -signal.SIGKILL
                size = now
    finally:
        _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _append(results: Path, test: str, message: str) -> None:
    with results.open("a") as file:
        file.write(json.dumps({"test": test, "outcome": "failed", "kind": "died", "message": message}) + "\n")


def failing(results: Path) -> list[str]:
    """The tests of ``results`` that failed with anything but a refusal."""
    return [r["test"] for r in records(results) if r["outcome"] == "failed" and r["kind"] != "refusal"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the folders, then what failed once more, then what failed again without coded exchange."""
    parser = argparse.ArgumentParser(description="Lightning's own tests with coded exchange forced on them.")
    parser.add_argument("--suite", type=Path, required=True, help="a checkout of Lightning's repository")
    parser.add_argument("--out", type=Path, required=True, help="where results go; what is there is not run again")
    parser.add_argument("--only", action="append", help="folder or file below tests_pytorch (default: the nine)")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for a test")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.only or FOLDERS:
        name = part.replace("/", ".").removesuffix(".py")
        first = options.out / f"{name}.jsonl"
        again, unforced = first.with_suffix(".again.jsonl"), first.with_suffix(".unforced.jsonl")
        run_tests(options.suite, [part], first, forced=True, timeout_s=options.timeout)
        if failed := failing(first):
            run_tests(options.suite, failed, again, forced=True, timeout_s=options.timeout)
        if failed := failing(again):
            run_tests(options.suite, failed, unforced, forced=False, timeout_s=options.timeout)
        print(describe(name, options.out), flush=True)


if __name__ == "__main__":
    main()
