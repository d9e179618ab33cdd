"""What a run shows: on a real terminal, in a pipe, under continuous integration, and of schemes that are not ours."""

import fcntl
import os
import re
import select
import struct
import sys
import termios
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from experiments.job import assemble
from experiments.panel import rows
from experiments.progress import ExchangeProgressBar
from experiments.report import readable_bytes
from lwpd_lightning.links.header import HEADER_BYTES
from tests.commands import PATIENCE_S, popen, run

ROOT = Path(__file__).parents[2]
RUN = [
    sys.executable, "-m", "experiments.train", "logger=csv", "code=lwpd_4_2_2", "code.wait_for=4", "model.hidden=[16]",
    "scheme.strategy.compressor=plain", "model.schedule=null", "trainer.max_steps=6", "trainer.max_epochs=-1",
    "callbacks.progress.refresh_s=0", "callbacks.progress.line_every_s=0",
    "+callbacks.faults._target_=lwpd_lightning.injection.FaultInjector", "+callbacks.faults.kills={3: 2}",
]  # fmt: skip
READY_BYTES = HEADER_BYTES + 4  # and a flag for each parameter
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def environment(**added: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "LINES", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **added}


def on_a_terminal(directory: Path, *words: str, **added: str) -> str:
    """All that the run writes to a pseudo-terminal of 150 columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 150, 0, 0))
    with popen([*RUN, *words], cwd=directory, env=environment(**added), stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        while select.select([ours], [], [], PATIENCE_S)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            written += piece
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_a_terminal_shows_the_code_and_a_live_bar_and_gets_its_cursor_back(tmp_path):
    written = on_a_terminal(tmp_path)

    shown = plain(written)
    assert shown.startswith("loading torch and Lightning\r\n")
    assert "decodes exactly  from any 3 of 4 codewords" in shown
    assert re.search(r"workers 0-3 +part 0: all blocks", shown)
    assert "6/6 updates" in shown
    assert "epoch 1/1 " in shown
    assert "epoch 2" not in shown  # Lightning counts on before the fit's last state is shown
    # 2 updates of 4 codewords and 4 of 3: all but one travel, 605 of 1210 float32 and a READY each; half but for those.
    saved = (2 * 3 + 4 * 2) * (4 * (1210 - 605) - READY_BYTES)
    told = re.escape(readable_bytes(saved))
    assert re.search(rf"arrivals [\d.]+/4, 1 lost · staleness 0\.\d\d · saved {told} \(47%\) · train_loss", shown)
    # On a line of its own, although the bar was there.
    assert re.search(r"WARNING\] - Worker 3 is lost after update \d \(was killed by SIGKILL\)", shown)
    assert written.count(HIDE_CURSOR) == written.count(SHOW_CURSOR) == 1
    assert "what the code bought" in shown
    (directory,) = (tmp_path / "outputs").glob("train/*/*")
    assert f"\r\nfiles: {directory}\r\n" in shown  # on a line of its own, which nothing cuts


@pytest.mark.slow
def test_jobs_beside_each_other_draw_no_bars_on_a_terminal(tmp_path):
    written = on_a_terminal(tmp_path, "-m", "seed=8,9", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")

    assert HIDE_CURSOR not in written
    assert "job 0 (seed=8): update 6/6, " in plain(written)
    assert "job 1 (seed=9): update 6/6, " in plain(written)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["--help", "--cfg=job"])
def test_what_only_shows_something_says_nothing_else(tmp_path, word):
    done = run([sys.executable, "-m", "experiments.train", word], cwd=tmp_path, env=environment())

    assert "loading" not in done.stdout


@pytest.mark.slow
def test_continuous_integration_gets_lines(tmp_path):
    written = on_a_terminal(tmp_path, CI="true")

    assert HIDE_CURSOR not in written
    assert "update 6/6, " in plain(written)


@pytest.mark.slow
def test_a_pipe_gets_lines_without_control_codes(tmp_path):
    with popen(RUN, cwd=tmp_path, env=environment(), stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
        pieces = process.communicate(timeout=PATIENCE_S)
    output, errors = (piece.decode() for piece in pieces)

    assert process.returncode == 0, errors
    assert "\x1b" not in output + errors
    assert "\r" not in output + errors
    loading, first, *_ = output.splitlines()
    assert loading == "loading torch and Lightning"
    assert "decodes exactly from any 3 of 4 codewords; an update waits for K=4 of 4: projective, exact" in first
    lines = [line for line in output.splitlines() if line.startswith("update ")]
    assert [line.split(",")[0] for line in lines] == [f"update {count}/6" for count in range(1, 7)]
    assert ", 1 lost, staleness 0." in lines[-1]


def test_the_panel_of_a_scheme_without_a_code(tmp_path):
    alone = ["~scheme.strategy", "+scheme.strategy._target_=lightning.pytorch.strategies.SingleDeviceStrategy"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [f"paths.run_dir={tmp_path}", "logger=csv", "trainer.devices=1", *alone]
        cfg = compose("train", overrides=[*overrides, "+scheme.strategy.device=cpu"])

    lines = dict(rows(assemble(cfg)))

    assert lines == {
        "model": "Classifier, 85,002 parameters, 340 kB",
        "data": "Digits, 1,437 samples, 128 an update",
        "workers": "1, without a code",
    }


def test_the_panel_knows_that_double_precision_doubles_the_bytes(tmp_path):
    def panel(precision):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            exact = "scheme.strategy.compressor=plain"
            settings = [f"paths.run_dir={tmp_path}", "logger=csv", f"trainer.precision={precision}", exact]
            return dict(rows(assemble(compose("train", overrides=settings))))

    single, double = panel("32-true"), panel("64-true")

    assert single["model"].endswith(", 340 kB")
    assert double["model"].endswith(", 680 kB")
    assert single["upload"] == "170 kB a codeword (float32), 50% of the whole gradient"
    assert double["upload"] == "340 kB a codeword (float64), 50% of the whole gradient"


class Line(LightningModule):
    """One weight that goes to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = (self.weight * batch).square().mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("settings", "end"), [({"max_epochs": 2}, "10"), ({"max_epochs": -1, "max_steps": 7}, "7")])
def test_a_scheme_without_an_exchange_has_its_updates_and_metrics(tmp_path, capsys, settings, end):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[ExchangeProgressBar(line_every_s=0)], **settings,
    )  # fmt: skip

    trainer.fit(Line(), DataLoader(torch.ones(5)))

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("update ")]
    assert len(lines) == int(end)
    assert re.fullmatch(rf"update {end}/{end}, [\d.e+]+/s, 0:00:00 left, train_loss [\d.]+", lines[-1])


@pytest.mark.parametrize(
    ("settings", "last"), [({"max_epochs": 30, "max_steps": 12}, "epoch 3/3"), ({"max_epochs": 2}, "epoch 2/2")]
)
def test_the_epochs_are_those_that_the_fit_has(tmp_path, settings, last):
    class Seen(Callback):
        def on_train_batch_end(self, trainer, *args):
            self.description = trainer.progress_bar_callback._progress.tasks[0].description

    seen = Seen()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[ExchangeProgressBar(), seen], **settings,
    )  # fmt: skip

    trainer.fit(Line(), DataLoader(torch.ones(5)))

    assert seen.description == last


def test_a_trainer_may_switch_the_bar_off_and_on(tmp_path, capsys):
    bar = ExchangeProgressBar(line_every_s=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, max_epochs=1,
        default_root_dir=tmp_path, callbacks=[bar],
    )  # fmt: skip
    bar.disable()
    trainer.fit(Line(), DataLoader(torch.ones(5)))
    silent = capsys.readouterr().out
    bar.enable()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Line(), DataLoader(torch.ones(5)))

    assert "update" not in silent
    assert "update 10/10" in capsys.readouterr().out
