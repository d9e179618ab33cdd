"""A pytest plugin: coded exchange wherever a test asks for "auto" or "ddp" on CPU, and a line of JSON for each test.

Every update waits for all codewords of a code with one data part, so that any batch_size can be cut and training equals
a single process'.
"""

from __future__ import annotations

import json
import linecache
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

import lwpd_lightning
from lwpd_lightning import LWPDStrategy, lwpd_code

MOST_DEVICES = 4
_OURS = str(Path(lwpd_lightning.__file__).parent)
_REFUSALS = (MisconfigurationException, ValueError, RuntimeError)
_SHOWN = 4000  # characters of a failure's report that are kept


class ForcedStrategy:
    """Puts `LWPDStrategy` into Lightning's choice of strategies, and counts what came of it."""

    def __init__(self) -> None:
        self.world_sizes: list[int] = []
        self.fits = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the choices of `Trainer` until ``patch`` is undone."""
        choose, init = _AcceleratorConnector._choose_strategy, _AcceleratorConnector._init_strategy
        start = LWPDStrategy.on_train_start

        def chosen(connector: _AcceleratorConnector) -> Any:
            return self._coded(connector) or choose(connector)

        def initialised(connector: _AcceleratorConnector) -> None:
            flag = connector._strategy_flag
            if isinstance(flag, str) and flag.startswith("ddp"):
                connector._strategy_flag = self._coded(connector) or flag
            init(connector)

        def started(strategy: LWPDStrategy) -> None:
            start(strategy)
            self.fits += 1

        patch.setattr(_AcceleratorConnector, "_choose_strategy", chosen)
        patch.setattr(_AcceleratorConnector, "_init_strategy", initialised)
        patch.setattr(LWPDStrategy, "on_train_start", started)

    def _coded(self, connector: _AcceleratorConnector) -> LWPDStrategy | None:
        n = len(connector._parallel_devices) * connector._num_nodes_flag
        if not isinstance(connector.accelerator, CPUAccelerator) or not 1 <= n <= MOST_DEVICES:
            return None
        self.world_sizes.append(n)
        return LWPDStrategy(code=lwpd_code(n, n, n))


class Recorder:
    """Appends what became of each test to a file, and leaves out the tests that it names already."""

    def __init__(self, results: Path, forced: ForcedStrategy | None) -> None:
        self._results, self._forced = results, forced
        self._failure: dict[str, Any] = {}
        self._outcome, self._seconds = "passed", 0.0

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = {record["test"] for record in records(self._results)}
        done = [item for item in items if name_of(item.nodeid) in known]
        items[:] = [item for item in items if name_of(item.nodeid) not in known]
        config.hook.pytest_deselected(items=done)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._failure, self._outcome, self._seconds = {}, "passed", 0.0
        if self._forced is not None:
            self._forced.world_sizes, self._forced.fits = [], 0
        self._append(test=name_of(item.nodeid), outcome="started")
        result = yield
        left = _end_left_workers()
        if left and self._outcome == "passed":
            self._outcome, self._failure = "failed", {"kind": "left", "message": f"left {', '.join(left)} behind"}
        used = {"world_sizes": self._forced.world_sizes, "fits": self._forced.fits} if self._forced is not None else {}
        self._append(
            test=name_of(item.nodeid),
            outcome=self._outcome,
            seconds=round(self._seconds, 2),
            left=left,
            **used,
            **self._failure,
        )
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        self._seconds += report.duration
        if report.failed and self._outcome != "failed":
            self._outcome, self._failure = "failed", failure(call.excinfo, report)
        elif report.skipped and self._outcome == "passed":
            # An expected failure of Lightning's own counts like a skipped test: it says nothing about us.
            self._outcome = "skipped"
        return report

    def _append(self, **record: Any) -> None:
        with self._results.open("a") as file:
            file.write(json.dumps(record) + "\n")


def records(results: Path) -> list[dict[str, Any]]:
    """The last record of each test in the order in which they ran; empty where there is no such file."""
    if not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return list({record["test"]: record for record in lines}.values())


def name_of(nodeid: str) -> str:
    """A test's name below Lightning's folder of tests, wherever the checkout lies."""
    return nodeid.split("tests_pytorch/", 1)[-1]


def failure(info: pytest.ExceptionInfo[BaseException] | None, report: Any) -> dict[str, Any]:
    """What is kept of a failure: a refusal of ours with its sentence, or anything else with its traceback's end."""
    if info is None:  # strict expected failures that passed
        return {"kind": "other", "message": str(report.longrepr)[-_SHOWN:]}
    refused = refusal(info.value)
    if refused is not None:
        return {"kind": "refusal", "message": refused}
    return {
        "kind": "other",
        "when": report.when,
        "error": type(info.value).__name__,
        "message": str(info.value)[:_SHOWN],
        "shown": str(report.longrepr)[-_SHOWN:],
    }


def refusal(error: BaseException | None) -> str | None:
    """The sentence with which this package refused something, where that is what led to ``error``."""
    while error is not None:
        if type(error) in _REFUSALS and _raised_by_us(error.__traceback__):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _raised_by_us(traceback: TracebackType | None) -> bool:
    """Whether the innermost line is a ``raise`` of this package, and not a library call in it that went wrong."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not traceback.tb_frame.f_code.co_filename.startswith(_OURS):
        return False
    line = linecache.getline(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
    return line.strip().startswith("raise ")


def _end_left_workers() -> list[str]:
    left = [child for child in multiprocessing.active_children() if child.name.startswith("lwpd-worker")]
    for child in left:
        child.kill()
        child.join()
    return [child.name for child in left]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lwpd")
    group.addoption("--lwpd-results", type=Path, required=True, help="file that results are appended to")
    group.addoption("--lwpd-unforced", action="store_true", help="leave the tests their own strategies")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flaky: pytest-rerunfailures' own; here `run` repeats what failed")
    torch.set_num_threads(1)  # models of a few parameters
    forced = None if config.getoption("--lwpd-unforced") else ForcedStrategy()
    if forced is not None:
        patch = pytest.MonkeyPatch()
        forced.install(patch)
        config.add_cleanup(patch.undo)
    config.pluginmanager.register(Recorder(config.getoption("--lwpd-results"), forced), "lwpd-recorder")
