"""The peers through the real command: one sweep whose jobs differ in scheme and number of ranks."""

import csv
import json
from itertools import product
from pathlib import Path

import pytest
import torch

from tests.experiments.test_train_command import train

pytestmark = pytest.mark.slow
SCHEMES = ["ddp", "ddp_bf16", "powersgd"]
RANKS = {"lwpd_4_2_2": 4, "lwpd_8_4_2": 8}
# mlp of 64-32-10: its weights are 32 x 64, which rank 4 compresses, and 10 x 32, which it would not halve.
PARAMETERS = 64 * 32 + 32 + 32 * 10 + 10
PAYLOAD = {"ddp": 4 * PARAMETERS, "ddp_bf16": 2 * PARAMETERS, "powersgd": 4 * (4 * (32 + 64) + 32 + 32 * 10 + 10)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> dict[tuple[str, int], Path]:
    """(scheme, ranks) -> the directory of its job."""
    directory = tmp_path_factory.mktemp("sweep")
    done = train(
        directory, "-m", f"scheme={','.join(SCHEMES)}", f"code={','.join(RANKS)}", "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", "model.hidden=[32]", "logger=csv", "hydra.sweep.dir=jobs",
        "straggler=slow_tail", "straggler.model.seconds=0.01",
        "+callbacks.keep._target_=tests.experiments.peers.callbacks.KeepParameters",
        "+callbacks.keep.folder=${paths.run_dir}/parameters",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = product(SCHEMES, RANKS.values())
    return {name: directory / "jobs" / str(number) for number, name in enumerate(names)}


def summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())


def logged(directory: Path, column: str) -> list[dict[str, str]]:
    """The rows of metrics.csv that have a value in ``column``."""
    with (directory / "csv/metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row[column]]


@pytest.mark.parametrize("ranks", RANKS.values())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_job_has_its_own_number_of_ranks(sweep, scheme, ranks):
    written = summary(sweep[scheme, ranks])

    assert (written["scheme"], written["world_size"], written["updates"]) == (scheme, ranks, 2)
    assert 0 <= written["val_acc"] <= 1
    assert written["time_to_target_s"] is None
    assert {path.name for path in (sweep[scheme, ranks] / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("ranks", RANKS.values())
@pytest.mark.parametrize("scheme", PAYLOAD)
def test_all_ranks_end_with_the_same_model(sweep, scheme, ranks):
    files = sorted((sweep[scheme, ranks] / "parameters").iterdir())
    first, *others = [torch.load(file, weights_only=True) for file in files]

    assert len(others) == ranks - 1
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("ranks", RANKS.values())
@pytest.mark.parametrize("scheme", PAYLOAD)
def test_bytes_are_those_of_a_ring(sweep, scheme, ranks):
    written = summary(sweep[scheme, ranks])

    assert written["payload_bytes_per_update"] == PAYLOAD[scheme]
    assert written["bytes_up"] == written["bytes_down"] == 2 * 2 * (ranks - 1) * PAYLOAD[scheme]
    assert written["bytes_up_per_update_per_worker"] == 2 * (ranks - 1) / ranks * PAYLOAD[scheme]
    assert written["startup_s"] <= written["fit_s"] <= written["wall_s"]
    assert written["compute_s_mean"] > 0
    assert written["wait_s_mean"] > 0
    unknown = ("code", "wait_for", "staleness_mean", "staleness_max", "inclusion_rate", "failures", "arrivals_mean")
    assert {key: written[key] for key in unknown} == dict.fromkeys(unknown)


@pytest.mark.parametrize("scheme", PAYLOAD)
def test_every_update_is_logged(sweep, scheme):
    rows = logged(sweep[scheme, 4], "exchange/update_s")

    assert [row["step"] for row in rows] == ["1", "2"]
    assert [int(row["exchange/bytes_up"]) for row in rows] == [2 * 3 * PAYLOAD[scheme]] * 2
    assert all(float(row[f"exchange/{name}"]) > 0 for row in rows for name in ("compute_s", "wait_s"))


@pytest.mark.parametrize("ranks", RANKS.values())
@pytest.mark.parametrize("scheme", PAYLOAD)
def test_validation_in_shares_is_validation_of_all(sweep, scheme, ranks):
    within, after = logged(sweep[scheme, ranks], "val_acc")  # the fit's own, then rank 0's alone
    at_the_end = summary(sweep[scheme, ranks])

    assert float(after["val_acc"]) == pytest.approx(at_the_end["val_acc"], abs=1e-7)
    assert float(within["val_acc"]) == pytest.approx(at_the_end["val_acc"], abs=1e-7)
    assert float(within["val_loss"]) == pytest.approx(at_the_end["val_loss"], rel=1e-5)
