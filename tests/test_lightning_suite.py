"""The harness that runs Lightning's own tests, on a suite of a few tests of ours."""

import json
import textwrap

import pytest

from tests.commands import popen
from tests.lightning_suite import report, run

SUITE = """
    import os
    import warnings

    import pytest
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel
    from lightning.pytorch.strategies import DDPStrategy
    from lwpd_lightning import LWPDStrategy

    def trainer(tmp_path, **settings):
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        return Trainer(default_root_dir=tmp_path, max_steps=2, **{"accelerator": "cpu", **quiet, **settings})

    @pytest.mark.parametrize(("devices", "strategy"), [(1, "auto"), (2, "auto"), (2, "ddp_spawn")])
    def test_trains(tmp_path, devices, strategy):
        asked = trainer(tmp_path, devices=devices, strategy=strategy)
        assert isinstance(asked.strategy, LWPDStrategy)
        asked.fit(BoringModel())
        assert asked.global_step == 2

    @pytest.mark.parametrize(("devices", "strategy"), [(5, "auto"), (2, DDPStrategy())])
    def test_is_left_alone(tmp_path, devices, strategy):
        assert not isinstance(trainer(tmp_path, devices=devices, strategy=strategy).strategy, LWPDStrategy)

    def test_is_refused(tmp_path):
        model = BoringModel()
        model.automatic_optimization = False
        with pytest.raises(ZeroDivisionError):
            trainer(tmp_path, devices=1).fit(model)

    def test_asks_for_another_class(tmp_path):
        assert type(trainer(tmp_path, devices=2).strategy) is DDPStrategy

    def test_fails_without_us_too():
        assert os.path.exists("/nowhere")

    def test_ends_the_process(tmp_path):
        if isinstance(trainer(tmp_path).strategy, LWPDStrategy):
            os._exit(3)

    @pytest.mark.skip
    def test_is_skipped():
        pass
"""
EXPECTED = """
    [[reason]]
    kind = "refusal"
    why = "manual optimization"
    match = "automatic_optimization=False"
    tests = ["few/test_few.py::test_is_refused"]

    [[reason]]
    kind = "assumption"
    why = "the test names Lightning's class"
    match = "DDPStrategy"
    tests = ["few/test_few.py::test_asks_for_another_class"]

    [[reason]]
    kind = "assumption"
    why = "another failure than the one that is seen"
    match = "hung or ended with 4"
    tests = ["few/test_few.py::test_ends_the_process"]
"""


@pytest.mark.slow
def test_a_suite_is_run_to_its_end_and_compared_with_what_is_expected(tmp_path, monkeypatch, capsys):
    few, expected, out = tmp_path / "suite/tests/tests_pytorch/few", tmp_path / "expected.toml", tmp_path / "out"
    few.mkdir(parents=True)
    (few.parent / "__init__.py").touch()
    (few / "test_few.py").write_text(textwrap.dedent(SUITE))
    expected.write_text(textwrap.dedent(EXPECTED))
    monkeypatch.setattr(report, "EXPECTED", expected)
    monkeypatch.setattr("subprocess.Popen", popen)  # five of pytest

    run.main(["--suite", str(tmp_path / "suite"), "--out", str(out), "--only", "few"])
    assert report.main([str(out)]) == 1

    printed = capsys.readouterr().out
    for line in (
        "8 tests counted",
        "5 passed",
        "3 of them trained over coded exchange",
        "1 refusal",
        "1 assumption",
        "1 unexpected",
        "1 unforced",
        "1 skipped",
        "few/test_few.py::test_ends_the_process\n    died:",
        "expected and not seen (assumption): another failure than the one that is seen",
    ):
        assert line in printed
    lines = (out / "few.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["outcome"] == "started" for line in lines) == 10  # each once, though one ended pytest
