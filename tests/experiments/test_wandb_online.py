"""`logger.mode=online` where W&B cannot be had: one sentence, before anything is put together."""

import socket

import pytest

from experiments.wandb_online import refuse_unreachable
from tests.experiments.before_torch import refused_before_torch


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A port of this machine that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
            monkeypatch.delenv(name, raising=False)
        yield silent


def test_without_a_key(server):
    with pytest.raises(ValueError, match=r"logger.mode=online without a W&B key: run `wandb login`, .*offline"):
        refuse_unreachable("online")


@pytest.mark.parametrize("silent", [True, False])
def test_without_a_server(server, tmp_path, silent):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
    if not silent:
        server.close()

    with pytest.raises(ValueError, match=r"logger.mode=online, but http.* does not answer: use logger.mode=offline"):
        refuse_unreachable("online")


def test_offline_asks_nobody(server):
    refuse_unreachable("offline")


def test_it_is_asked_before_anything_is_imported_that_takes_seconds(server, tmp_path):
    said = refused_before_torch("logger.mode=online", f"hydra.run.dir={tmp_path}/run")

    assert "logger.mode=online without a W&B key" in said
