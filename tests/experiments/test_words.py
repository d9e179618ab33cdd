"""Words on the command line that cannot be: no traceback, and the sentence names them as typed."""

import pytest

from tests.experiments.test_train_command import train


@pytest.mark.parametrize("words", [("hydra.run.dir=taken/run",), ("-m", "hydra.sweep.dir=taken/run", "seed=0,1")])
def test_a_directory_that_cannot_be_written_to_is_one_sentence(tmp_path, words):
    (tmp_path / "taken").write_text("a file")

    done = train(tmp_path, *words, "logger=csv")

    assert done.returncode == 1
    (setting,) = (word for word in words if word.startswith("hydra."))
    assert done.stderr == f"{setting} cannot be written to (Not a directory): use a directory that can.\n"


@pytest.mark.slow
def test_what_schemes_are_made_of_is_no_scheme(tmp_path):
    offered, refused = train(tmp_path, "--help"), train(tmp_path, "scheme=_exchange")

    (schemes,) = (line for line in offered.stdout.splitlines() if line.startswith("scheme: "))
    assert "lwpd" in schemes
    assert "exchange" not in schemes
    assert refused.returncode == 1
    assert "Could not find 'scheme/_exchange'" in refused.stderr
    assert "Traceback" not in refused.stderr
