"""The command as a user runs it, and what it refuses."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException

from experiments.describe import run
from tests.commands import PATIENCE_S
from tests.commands import run as forked

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "experiments.describe"]


def size(picture: Path) -> tuple[int, int]:
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:])


@pytest.mark.real_start
def test_a_code_is_printed_and_drawn_in_the_runs_folder(tmp_path):
    done = subprocess.run(
        [*COMMAND, "code=lwpd_4_2_2", "scheme=local"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "scheme local: local code" in done.stdout
    assert "K=3 of 4" in done.stdout
    assert "\x1b" not in done.stdout
    (picture,) = tmp_path.glob("outputs/describe/*/*/code.png")
    assert min(size(picture)) > 500


@pytest.mark.slow
def test_an_impossible_code_is_one_sentence(tmp_path):
    done = forked([*COMMAND, "code.t=3"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})

    assert done.returncode != 0
    assert done.stderr == "t=3 does not divide k=4: the nearest sizes of scheme=lwpd are code.t=2, code.t=4.\n"


@pytest.fixture
def described(tmp_path, capsys):
    def with_overrides(*overrides: str) -> tuple[str, Path]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("describe", overrides=[f"paths.run_dir={tmp_path}", *overrides])
        picture = run(cfg)
        return capsys.readouterr().out, picture

    yield with_overrides
    GlobalHydra.instance().clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["scheme=sync"],
        ["scheme=k_sync", "code=lwpd_16_8_4"],
        ["code.n=64", "code.k=32", "code.t=4", "code.wait_for=48"],
    ],
)
def test_other_schemes_and_sizes(described, tmp_path, monkeypatch, overrides):
    for module in ("description", "drawing"):
        monkeypatch.setattr(f"experiments.{module}.MAX_SETS", 20)  # with 64 workers a thousand take seconds

    text, picture = described(*overrides, f"out={tmp_path}/new/folder/{len(overrides)}.png")

    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert len(text.splitlines()) < 110
    assert min(size(picture)) > 500


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["code.wait_for=9"], "^code.wait_for=9 is more than the n=8 workers of the code: add code.wait_for=6"),
        (["code.wait_for=1"], "^code.wait_for=1: use 2..8 .* or 1 with scheme.strategy.dedicated_coordinator=true.$"),
        (["out=/proc/nope/code.png"], r"^out=/proc/nope/code.png cannot be written to \(No such file or directory\)"),
        ([f"out={__file__}/code.png"], r"^out=.*/code.png cannot be written to \(File exists\): use a directory"),
        (["scheme=local", "code.n=6", "code.k=2", "code.t=2", "out=code.pdf"], "out=code.pdf is no PNG file"),
        (
            ["~scheme.strategy", "+scheme.strategy._target_=lightning.pytorch.strategies.SingleDeviceStrategy",
             "+scheme.strategy.device=cpu", "scheme.name=alone"],
            "scheme=alone has no code to describe",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_refused_in_a_sentence(described, overrides, sentence):
    with pytest.raises(CompactHydraException, match=sentence) as caught:
        described(*overrides)

    assert "\n" not in str(caught.value)
