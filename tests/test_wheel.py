"""The built wheel, away from the checkout: nothing in it is called `experiments`, as everyone's own folder is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S

ROOT = Path(__file__).parents[1]
SMALL = ("logger=csv", "code=lwpd_4_2_2", "code.wait_for=4", "trainer.max_steps=2", "model.hidden=[16]")

pytestmark = pytest.mark.real_start


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that holds the wheel's packages."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    # Built from a copy: a build takes up what an earlier one left beside it.
    for folder in ("lwpd_lightning", "experiments", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", site, source]
    subprocess.run(pip, check=True, timeout=PATIENCE_S)
    (wheel,) = site.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture
def elsewhere(tmp_path):
    """A directory whose folder experiments/ is somebody else's."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/__init__.py").write_text("raise ImportError('not of the wheel')\n")
    return tmp_path


def run(site, directory, command, *words):
    code = f"import sys; from lwpd_experiments.{command} import main; sys.exit(main())"
    # Kernels are not compiled once more for the folder that they are in here.
    environment = {**os.environ, "PYTHONPATH": str(site), "NUMBA_DISABLE_JIT": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_a_wheel_has_two_top_level_packages_and_all_that_is_in_them(installed):
    assert {path.parent.name for path in installed.glob("*/__init__.py")} == {"lwpd_lightning", "lwpd_experiments"}
    for folder, name in {"lwpd_lightning": "lwpd_lightning", "experiments": "lwpd_experiments"}.items():
        assert files(installed / name) >= files(ROOT / folder)
    assert files(installed / "lwpd_experiments/conf") == files(ROOT / "conf")


def files(folder):
    return {path.relative_to(folder) for kind in ("*.py", "*.yaml", "py.typed") for path in folder.rglob(kind)}


def test_a_sweep_and_its_comparison_run_beside_a_folder_of_the_same_name(installed, elsewhere):
    swept = run(installed, elsewhere, "train", "-m", "seed=0,1", *SMALL)
    assert swept.returncode == 0, swept.stderr
    assert "2 of 2 jobs finished" in swept.stderr
    assert len(list(elsewhere.glob("outputs/train/sweeps/*/*/summary.json"))) == 2

    compared = run(installed, elsewhere, "compare", "outputs")
    assert compared.returncode == 0, compared.stderr
    assert "2 runs in 1 group;" in " ".join(compared.stdout.split())


def test_a_code_is_described_beside_a_folder_of_the_same_name(installed, elsewhere):
    described = run(installed, elsewhere, "describe", "code=lwpd_4_2_2", "scheme=local")
    assert described.returncode == 0, described.stderr
