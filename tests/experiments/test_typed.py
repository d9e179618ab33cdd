"""Words of the command line that cannot work are refused as they were typed, before anything heavy is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import typed
from experiments.typed import by_typed_names, refuse_numbers, refuse_plugins
from tests.experiments.test_sizes import composed


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seed=abc"], "seed=abc is no seed: use a whole number in 0..4294967295."),
        (["seed=-1"], "seed=-1 is no seed: use a whole number in 0..4294967295."),
        (["seed=true"], "seed=true is no seed: use a whole number in 0..4294967295."),
        (["code.n=x"], "code.n=x is no size: use a whole number, or a size whole, code=lwpd_8_4_2."),
        (["code.t=1.5"], "code.t=1.5 is no size: use a whole number, or a size whole, code=lwpd_8_4_2."),
        (["code.wait_for=0"], "code.wait_for=0: use 2..8 codewords of the n=8 workers, or adaptive."),
        (
            ["code.wait_for=1"],
            "code.wait_for=1: use 2..8 codewords of the n=8 workers, or adaptive, or 1 with "
            "scheme.strategy.dedicated_coordinator=true.",
        ),
        (["code.wait_for=some"], "code.wait_for=some: use 2..8 codewords of the n=8 workers, or adaptive."),
        (
            ["scheme.strategy.wait_for=0"],
            "scheme.strategy.wait_for=0: use 2..8 codewords of the n=8 workers, or adaptive.",
        ),
        (
            ["trainer.devices=4"],
            "trainer.devices=4 makes 4 ranks, and the code has n=8 workers: use trainer.devices=8, or code.n=4 with "
            "sizes that go with it.",
        ),
        (
            ["+trainer.num_nodes=2"],
            "trainer.devices=8 on 2 nodes makes 16 ranks, and the code has n=8 workers: use trainer.devices=4, or "
            "code.n=16 with sizes that go with it.",
        ),
        (
            ["scheme.strategy.dedicated_coordinator=true"],
            "trainer.devices=8 makes 8 ranks, and the code has n=8 workers and a coordinator: use trainer.devices=9, "
            "or code.n=7 with sizes that go with it.",
        ),
    ],
)
def test_a_number_is_refused_as_it_was_typed(overrides, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        refuse_numbers(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["code.wait_for=adaptive"],
        ["code.wait_for=1", "scheme.strategy.dedicated_coordinator=true", "trainer.devices=9"],
        ["scheme=ddp", "trainer.devices=4"],
        ["trainer.devices=4", "+trainer.num_nodes=2"],
        ["trainer.devices=auto"],
    ],
)
def test_what_can_work_is_let_through(overrides):
    refuse_numbers(composed(*overrides))


def test_a_setting_of_a_sentence_gets_the_name_that_was_typed():
    overrides = ["seed=3", "++scheme.strategy.heartbeat_s=-1", "code.n=4"]
    assert by_typed_names("heartbeat_s=-1 is no duration", overrides) == "scheme.strategy.heartbeat_s=-1 is no duration"
    assert by_typed_names("code.n=4 is no n=4", overrides) == "code.n=4 is no n=4"
    slow = ["+straggler.model.slowdown={9: 2}"]
    assert by_typed_names("slowdown names worker 9", slow) == "straggler.model.slowdown names worker 9"
    assert by_typed_names("slowdown[9]=0.5 would", slow) == "straggler.model.slowdown[9]=0.5 would"
    assert by_typed_names("max_heartbeat_s=-1", overrides) == "max_heartbeat_s=-1"


@pytest.mark.parametrize("module", ["a_module_that_is_not_there", "a_package_that_is_not_there.plugin"])
def test_a_plugin_that_is_missing_names_its_extra(monkeypatch, module):
    monkeypatch.setitem(typed._PLUGINS, "hydra/launcher=joblib", (module, "sweep"))
    words = ["-m", "hydra/launcher=joblib", "seed=1,2"]
    assert refuse_plugins(words) == (
        "hydra/launcher=joblib needs a plugin that is not installed: pip install 'lwpd-lightning[sweep]'"
    )
    assert refuse_plugins(["-m", "seed=1,2"]) is None
    monkeypatch.setitem(typed._PLUGINS, "sweep=learning_rate", (module, "optuna"))
    assert "pip install 'lwpd-lightning[optuna]'" in refuse_plugins(["sweep=learning_rate"])


def test_arithmetic_needs_neither_torch_nor_lightning():
    program = "import sys, experiments.train; sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0
