"""Codewords and decoded gradients are told apart from what all hosts sent together, headers and all."""

import pytest

from experiments.bench.race.testbed import ShapedHosts
from experiments.bench.upload import DTYPES, Cable, FixedRun, separate
from experiments.train import CONFIG_PATH
from lwpd_lightning.coding.wire import wire_format
from tests.experiments.bench.hosts import needs_root, tell

PARAMETERS = 1_000_000
FIXED, CODEWORD, UPDATE = 700_000, 2_350_000, 33_000_000


def row(updates, arrivals_mean, update_dtype, sent=None, resyncs=0):
    share = wire_format(update_dtype).nbytes(PARAMETERS) / (4 * PARAMETERS)
    total = FIXED + updates * ((arrivals_mean - 1) * CODEWORD + share * UPDATE) if sent is None else sent
    return {
        **{"updates": updates, "arrivals_mean": arrivals_mean, "update_dtype": update_dtype, "parameters": PARAMETERS},
        **{"resyncs": resyncs, "sent": [total / 4, total / 2, total / 4]},
    }


# No two runs wait for equally many.
RUNS = [(4, 6.25, "float32"), (4, 6.0, "int8"), (20, 6.45, "float32"), (20, 6.8, "int8")]


def test_what_codewords_took_follows_from_runs_of_two_lengths_and_dtypes():
    shares = separate(row(*run) for run in RUNS)

    assert shares[:3] == pytest.approx((FIXED, CODEWORD, UPDATE), rel=1e-6)
    assert shares.unexplained < 1e-9


def test_with_equal_counts_it_is_the_difference_of_two_runs():
    runs = [row(updates, 6.0, dtype) for updates in (4, 20) for dtype in ("float32", "bfloat16")]
    floats, halves = (sum(sent) for sent in (runs[2]["sent"], runs[3]["sent"]))

    assert 20 * 5 * separate(runs).codeword == pytest.approx(2 * halves - floats - FIXED)


def test_what_no_codeword_explains_is_said():
    rows = [row(*run) for run in RUNS]
    rows[3]["sent"][0] += 0.05 * 20 * 5.8 * CODEWORD

    assert 0.001 < separate(rows).unexplained < 0.05


@pytest.mark.parametrize("kept", [slice(0, 2), slice(0, 4, 2), slice(0, 3, 2)])
def test_runs_that_leave_it_open_are_refused(kept):
    with pytest.raises(ValueError, match="of two lengths and of two dtypes"):
        separate([row(*run) for run in RUNS[kept]])


def test_runs_that_sent_whole_states_are_refused():
    with pytest.raises(ValueError, match="took over rank 0's whole state"):
        separate([*(row(*run) for run in RUNS[:3]), row(*RUNS[3], resyncs=1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["k_async", "lwpd"])
def test_the_runs_compose(scheme, dtype):
    from hydra import compose, initialize_config_dir

    planned = FixedRun("mlp", "1000", "none", scheme, 0, 0, update_dtype=dtype, max_steps=7)
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        cfg = compose("train", overrides=planned.overrides())

    assert (cfg.scheme.name, cfg.code.wait_for, cfg.code.n) == (scheme, 6, 8)
    assert (cfg.trainer.max_steps, cfg.callbacks.stop, cfg.scheme.strategy.update_dtype) == (7, None, dtype)
    assert cfg.scheme.strategy.wire_dtype is None  # codewords in the gradient's own float32


@needs_root
@pytest.mark.parametrize("cabled", [False, True])
def test_interfaces_count_the_header_of_every_segment(cabled):
    said = bytes(3_000_000)
    with ShapedHosts(2, mbit=1000.0) as bed:
        first, second = bed.hosts
        prepare = (lambda: Cable().setup(None, None, "fit")) if cabled else lambda: None
        assert tell(first, second, said, prepare) == [0, 0]
        sent = first.traffic().sent
    # 66 bytes of Ethernet, IP and TCP for each 1448 of the message.
    headers = 66 * len(said) / 1448
    assert (sent >= len(said) + headers) == cabled
