"""A scheme and a code of a user's own: a module and a file beside it, and nothing of the package is touched."""

import json
import sys

import pytest
import yaml

from experiments.comparison.find import local_runs
from experiments.comparison.groups import group
from experiments.comparison.style import looks
from tests.commands import run
from tests.experiments.test_train_command import ROOT

pytestmark = pytest.mark.slow
MODULE = '''
"""Every data part is computed by two workers, one of which may be late."""
import torch
from lwpd_lightning import Code, LWPDStrategy

def mirrored_code(n):
    rows = torch.eye(n // 2, dtype=torch.float64).repeat(2, 1)
    return Code(rows, data_parts=n // 2, blocks=1, family="mirrored")

def mirrored(n, *, stale="drop", **options):
    return LWPDStrategy(mirrored_code(n), stale=stale, **options)
'''
CODE = {"n": "${code.n}"}
# As a scheme with a function of its own, and as what LWPDStrategy does with a code.
SCHEMES = {
    "mirrored": {"_target_": "at_home.mirrored", "code": CODE},
    "plain": {"code": {"_target_": "at_home.mirrored_code", **CODE}},
}
WORDS = ("--config-dir=conf", "code=lwpd_4_2_2", "hydra.run.dir=run")


@pytest.fixture
def home(tmp_path):
    """A directory with a user's module and configurations."""
    (tmp_path / "at_home.py").write_text(MODULE)
    (tmp_path / "conf/scheme").mkdir(parents=True)
    for name, strategy in SCHEMES.items():
        look = {"colour": "#123456", "marker": "h"}
        scheme = {"defaults": ["/exchange@_here_", "_self_"], "name": name, "look": look, "strategy": strategy}
        (tmp_path / f"conf/scheme/{name}.yaml").write_text(yaml.safe_dump(scheme))
    return tmp_path


def command(directory, name, *words):
    path = {"PYTHONPATH": f"{ROOT}:{directory}"}
    return run([sys.executable, "-m", f"experiments.{name}", *WORDS, *words], cwd=directory, env=path)


@pytest.mark.parametrize(("scheme", "stale"), [("mirrored", "drop"), ("plain", "apply")])
def test_it_trains_and_is_drawn_as_its_file_says(home, scheme, stale):
    done = command(home, "train", f"scheme={scheme}", "trainer.max_steps=3", "model.hidden=[16]", "logger=csv")

    assert done.returncode == 0, done.stderr
    summary = json.loads((home / "run/summary.json").read_text())
    assert (summary["scheme"], summary["updates"], summary["wait_for"]) == (scheme, 3, 3)
    assert summary["code"] == {"family": "mirrored", "n": 4, "k": 2, "t": 1, "A": 2, "B": 1}
    (recorded,), _ = local_runs([home / "run"])
    assert recorded.get("scheme.strategy.stale") == stale
    (look,) = looks(group([recorded]))
    assert (look.colour, look.marker) == ("#123456", "h")


def test_an_override_of_what_it_chooses_wins(home):
    done = command(home, "describe", "scheme=mirrored", "scheme.strategy.decoder=least_squares", "code.wait_for=3")

    assert done.returncode == 0, done.stderr
    assert "scheme mirrored: mirrored code" in done.stdout
    assert "least" in done.stdout


def test_a_function_that_is_not_there_is_one_sentence(home):
    (home / "at_home.py").unlink()

    done = command(home, "describe", "scheme=mirrored")

    assert done.returncode == 1
    assert "scheme.strategy._target_=at_home.mirrored is not there (No module named 'at_home'): use" in done.stderr
    assert "Traceback" not in done.stderr
