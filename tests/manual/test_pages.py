"""What the manual says can be typed: modules, options, settings, names and files that there are."""

import ast
import doctest
import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import lwpd_lightning
from tests.manual.pages import CURRENT, NAMES, ROOT, anchors, commands, lines_of_code, links, python, text

HYDRA = ("experiments.train", "experiments.describe")
KNOWN = {
    "torch": torch,
    **{name: getattr(lwpd_lightning, name) for name in lwpd_lightning.__all__},
    **{name: getattr(lightning.pytorch, name) for name in ("Trainer", "Callback")},
}
OF_HYDRA = [(name, *command) for name in CURRENT for command in commands(name) if command[0] in HYDRA]
OTHERS = [(name, *command) for name in CURRENT for command in commands(name) if command[0] not in HYDRA]


def test_there_are_commands_to_check():
    assert len(OF_HYDRA) > 15
    assert len(OTHERS) > 15
    assert {"-m", "--quick", "--group-by"} <= {word for _, _, words in OF_HYDRA + OTHERS for word in words}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module", "words"), OF_HYDRA)
def test_every_setting_on_a_page_is_taken(name, module, words):
    parsed = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    if any("optuna" in str(word) or word == "sweep=learning_rate" for word in words) and not find_spec("optuna"):
        pytest.skip("the extra `optuna` is not installed")
    fixed = [one.input_line for one in parsed if not one.is_sweep_override() or one.is_interval_sweep()]
    chosen = [
        f"{one.key_or_group}={value}"
        for one in parsed
        if one.is_sweep_override() and not one.is_interval_sweep()
        for value in one.sweep_string_iterator()
    ]
    fixed = [word.replace("interval(0.001,0.1)", "0.001") for word in fixed]  # what the sweeper would say
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for value in chosen or [None]:
            compose(module.rpartition(".")[2], overrides=[*fixed, *filter(None, [value])], return_hydra_config=True)


@pytest.mark.parametrize(("name", "module", "words"), OTHERS)
def test_every_command_on_a_page_exists_and_has_the_options(name, module, words):
    spec = find_spec(module)
    assert spec is not None, module
    assert not spec.submodule_search_locations or find_spec(f"{module}.__main__"), f"{module} cannot be run"

    folder = Path(spec.origin).parent
    files = (
        folder.glob("*.py") if spec.submodule_search_locations else [Path(spec.origin), folder / "examples/curve.py"]
    )
    files = [*files, Path(spec.origin).with_name("curve.py"), folder.parent / "plain/runs.py"]  # shared by commands
    source = "".join(file.read_text() for file in files if file.exists())
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("name", [name for name in CURRENT if python(name)])
def test_python_on_a_page_parses_and_names_what_there_is(name):
    names = dict(KNOWN)
    for snippet in python(name):
        if ">>>" in snippet:
            continue
        tree = ast.parse(snippet)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, type_ignores=[]), name, "exec"), names)
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            path = ast.unparse(call.func).split(".")
            if not all(map(str.isidentifier, path)) or path[0] in defined or path[0] not in names:
                continue
            function = names[path[0]]
            for attribute in path[1:]:
                function = getattr(function, attribute)
            if getattr(function, "__module__", "").startswith(("lwpd_lightning", "lightning")):
                known = inspect.signature(function).parameters
                given = [keyword.arg for keyword in call.keywords if keyword.arg]
                takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
                settings = inspect.signature(lwpd_lightning.LWPDStrategy).parameters if takes_all else {}
                assert [one for one in given if one not in known and one not in settings] == [], ast.unparse(call)


@pytest.mark.parametrize("name", [name for name in CURRENT if ">>>" in text(name)])
def test_what_a_page_shows_is_what_python_answers(name):
    for snippet in python(name):
        if ">>>" in snippet:
            test = doctest.DocTestParser().get_doctest(snippet, {}, name, name, 0)
            assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", [name for name in NAMES if links(name)])
def test_every_link_leads_somewhere(name):
    for file, anchor in links(name):
        assert file.exists(), f"{name} links to {file}"
        assert not anchor or anchor in anchors(file), f"{name} links to {file}#{anchor}"


@pytest.mark.parametrize("name", CURRENT)
def test_every_file_that_a_page_names_is_there(name):
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = [line for line in lines_of_code(name) if re.fullmatch(rf"(?:{folders})/[\w./-]*", line)]

    assert [
        path for path in named if not (ROOT / path).exists() and "mirrored" not in path and "outputs" not in path
    ] == []


@pytest.mark.parametrize("name", CURRENT)
def test_every_module_that_a_page_names_can_be_imported(name):
    for dotted in re.findall(r"`(lwpd_lightning(?:\.\w+)+)`", text(name)):
        module, _, attribute = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), f"{name} names {dotted}"


def test_ci_runs_the_command_that_readme_says_runs_the_tests():
    (command,) = [line for line in lines_of_code("README.md") if line.endswith("-m pytest -n 3 --dist loadfile")]

    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_every_extra_that_a_page_installs_is_one():
    extras = (ROOT / "pyproject.toml").read_text()
    for name in CURRENT:
        for extra in re.findall(r"lwpd-lightning\[(\w+)\]'", text(name)):
            assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"{name} installs {extra}"


def test_readme_has_two_screens_and_its_figures_are_those_of_the_results():
    readme = text("README.md")
    assert len(readme.splitlines()) <= 100
    results = text("docs/results.md").splitlines()
    rows = re.findall(r"^\| `(\w+)`(?: \([^)]*\))? \|((?:[ *]*[\d.]*[ *]*\|)+)$", readme, re.MULTILINE)
    for scheme, cells in rows:
        raced = re.compile(rf"\| {scheme} \| ([\d.]+) (?:\(.*?\) )?s \|")
        assert re.findall(r"[\d.]+", cells) == [found[1] for line in results if (found := raced.match(line))], scheme
    assert {scheme for scheme, _ in rows} >= {"whitened", "lwpd", "powersgd", "ddp"}
