"""The command that runs a job once more: real commands, which are run once more."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from lwpd_lightning import command
from lwpd_lightning.command import job_command
from tests.commands import PATIENCE_S

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def job():
    """A Hydra job of a sweep, in a directory with a name that Hydra's grammar would trip over."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["seed=3", "code=lwpd_4_2_2"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "/runs/n=4, it's [one]"
        cfg.hydra.runtime.cwd = "/somewhere"
        cfg.hydra.runtime.config_sources = [
            ConfigSourceInfo(path="/mine", schema="file", provider="command-line"),
            ConfigSourceInfo(path=str(CONF), schema="file", provider="main"),
        ]
        cfg.hydra.mode = RunMode.MULTIRUN
    HydraConfig.instance().set_config(cfg)
    yield
    HydraConfig.instance().cfg = None


def test_one_job_of_a_sweep_is_run_where_it_is(job):
    command, cwd = job_command()
    options = [word for word in command if word.startswith("--config")]
    words = command[command.index(options[-1]) + 1 :]
    said = {override.key_or_group: override.value() for override in OverridesParser.create().parse_overrides(words)}

    assert cwd == "/somewhere"
    assert options == ["--config-name=train", "--config-dir=/mine"]
    assert said["seed"] == 3
    assert said["code"] == "lwpd_4_2_2"
    assert said["hydra.mode"] == "RUN"
    assert str(said["hydra.run.dir"]).replace("\\'", "'").strip("'") == "/runs/n=4, it's [one]"
    assert said["hydra.output_subdir"] is None


# Says how it was started and what would start it again, in another directory by then. It imports the module alone,
# since importing torch as often would take a minute.
PROGRAM = f"""
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("command", {command.__file__!r})
command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command)
started = dict(arguments=sys.argv[1:], directory=os.getcwd(), package=__package__, debug=__debug__, name=__name__)
os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
print(json.dumps([started, *command.job_command()]))
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("script.py", "sub/script.py", "package/module.py", "package/__main__.py"):
        (tmp_path / name).write_text(PROGRAM)
    (tmp_path / "package/__init__.py").touch()
    with zipfile.ZipFile(tmp_path / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    return tmp_path


def started(words, cwd, **settings):
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, **settings)


@pytest.mark.parametrize(
    "words",
    [
        ["script.py"], ["./script.py"], ["sub/script.py"], ["sub/../script.py"], ["{place}/script.py"],
        ["-m", "package"], ["-m", "package.module"], ["package"], ["archive.pyz"], ["./archive.pyz"],
        ["-O", "-W", "error", "script.py"], ["-m", "cProfile", "-o", "{place}/profile", "script.py"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_job_is_run_once_more_as_it_was_wherever_it_has_gone(place, words):
    words = [sys.executable, *(word.format(place=place) for word in words), "--lr", "a word", "-c"]
    first = started(words, place)
    assert not first.returncode, first.stderr
    said, again, cwd = json.loads(first.stdout.splitlines()[0])
    assert said["arguments"] == ["--lr", "a word", "-c"]
    second = started(again, cwd)
    assert not second.returncode, second.stderr
    assert json.loads(second.stdout.splitlines()[0]) == [said, again, cwd]


NOTEBOOK = f"""
import sys, types
sys.argv[:] = [sys.argv[0], "-f", "kernel.json"]
sys.modules["__main__"] = main = types.ModuleType("__main__")  # as IPython's kernel does
sys.modules["IPython"] = shell = types.ModuleType("IPython")
shell.get_ipython = object
main.__dict__.update(FILE)
exec({PROGRAM!r}, main.__dict__)
"""


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["-c", PROGRAM], ""), (["-"], PROGRAM), ([], PROGRAM), (["-i"], PROGRAM.replace("\n\n", "\n")),
        (["kernel.py"], ""), (["interactive.py"], ""),
    ],
    ids=["-c", "-", "standard input", "typed in", "notebook", "interactive window"],
)  # fmt: skip
def test_what_cannot_be_run_again_is_refused_with_what_can(place, words, typed):
    (place / "kernel.py").write_text(NOTEBOOK.replace("FILE", "{}"))
    (place / "interactive.py").write_text(NOTEBOOK.replace("FILE", "{'__file__': 'analysis.py'}"))
    result = started([sys.executable, *words], place, input=typed)
    sentence = next(line for line in result.stderr.splitlines() if line.startswith("ValueError: "))
    assert sentence.startswith("ValueError: start_method='rerun' runs the job's command once more")
    assert "use a script or `python -m`" in sentence
    assert sentence.endswith("start_method='fork'.")


def test_a_script_that_a_notebook_runs_is_run_once_more(place):
    (place / "kernel.py").write_text(
        NOTEBOOK.replace("FILE", "{'__file__': 'script.py'}").replace("[sys.argv[0],", "['script.py',")
    )
    said, again, cwd = json.loads(started([sys.executable, "kernel.py"], place).stdout)
    assert (again[-3:], cwd) == ([os.path.join(place, "script.py"), *said["arguments"]], str(place))
