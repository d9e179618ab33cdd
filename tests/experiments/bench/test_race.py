"""The race: what is planned, hosts that are really apart, one race for real, and what its rows come to."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.bench.race.bound import bound_s, until_kth_s
from experiments.bench.race.plan import (
    ALONE,
    RANKS,
    SCHEMES,
    TUNING_SEED,
    WORKLOADS,
    Race,
    Regime,
    alone,
    grid_of,
    races,
    tuning,
)
from experiments.bench.race.results import Results, standings
from experiments.bench.race.table import markdown
from experiments.bench.race.testbed import ShapedHosts
from experiments.train import CONFIG_PATH
from lwpd_lightning.injection.stragglers import StragglerModel
from tests.commands import PATIENCE_S
from tests.experiments.bench.hosts import needs_root, tell

EVEN = Regime("mlp", "even", "none")
UNSHAPED = EVEN._replace(links="unshaped")
NUMBER = re.compile(r"(?<==)-?\d[\d.]*(e-?\d+)?$")


def row(scheme="ddp", seed=0, time_s=10.0, regime=EVEN, point=0, **others):
    reached = time_s is not None
    return {
        **asdict(regime.race(scheme, seed, point)),
        **{"reached": reached, "time_to_target_s": time_s, "failed": None, "wall_s": 15.0},
        **{
            "updates": 10,
            "startup_s": 1.0,
            "fit_s": 10.0,
            "update_s_mean": 1.1,
            "compute_s_mean": 0.1,
            "parameters": 1000,
        },
        **{"sent": [12_500_000] * regime.ranks, "received": [1000] * regime.ranks},
        **{"first_sent": [1_250_000] * regime.ranks, "first_received": [100] * regime.ranks, "first_late_s": 0.0},
        **others,
    }


def test_every_scheme_is_tuned_on_the_same_grid_and_on_no_raced_seed():
    planned = tuning([EVEN], SCHEMES)

    assert {(race.scheme, race.point) for race in planned} == {
        (scheme, point) for scheme in SCHEMES for point in range(len(WORKLOADS["mlp"].grid))
    }
    assert {race.seed for race in planned} == {TUNING_SEED}
    # Where all ranks are waited for, updates are the same on any links.
    assert {race.links for race in planned if race.scheme == "ddp"} == {"unshaped"}
    assert {race.links for race in planned if race.scheme in ("onebit_adam", "sync")} == {"unshaped"}
    # Not so where points differ in what is sent.
    assert {race.links for race in planned if race.scheme in ("k_async", "diloco", "powersgd_1")} == {"even"}
    assert {race.seed for race in races({(EVEN, "ddp"): 2}, [0, 1, 2])} == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("scheme", [*SCHEMES, ALONE])
def test_every_race_composes(workload, scheme):
    from hydra import compose, initialize_config_dir

    points = grid_of(workload, scheme)
    assert len(points) == len(WORKLOADS[workload].grid)
    # What differs in numbers alone composes alike, and what composes does so with fewer words.
    kinds = {frozenset(NUMBER.sub("0", word) for word in words): point for point, words in enumerate(points)}
    whole = [point for words, point in kinds.items() if not any(words < others for others in kinds)]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        for point in whole:
            cfg = compose("train", overrides=Race(workload, "even", "slow_tail", scheme, 3, point).overrides())
            assert cfg.callbacks.diverged.monitor == "train_loss"

    processes = RANKS + bool(cfg.scheme.strategy.get("dedicated_coordinator"))
    assert (cfg.scheme.name, cfg.seed, cfg.trainer.num_nodes, cfg.trainer.devices) == (scheme, 3, processes, 1)
    assert len(Race(workload, "even", "slow_tail", scheme, 3, 0).hosts) == processes
    assert scheme == ALONE or cfg.callbacks.stop.stopping_threshold == cfg.target.value


def test_the_soonest_point_is_raced_and_slow_ones_are_not_followed_to_their_end(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for point, time_s in enumerate([30.0, 12.0, None]):
        results.add(row(seed=TUNING_SEED, point=point, time_s=time_s, wall_s=40.0 - 10 * point))

    again = Results(tmp_path / "results.jsonl")

    assert again.rows == results.rows
    assert again.tuned() == {(EVEN, "ddp"): 1}
    assert again.has(EVEN.race("ddp", TUNING_SEED, 2))
    assert not again.has(EVEN.race("ddp", TUNING_SEED, 3))
    assert again.limit_s(EVEN.race("ddp", TUNING_SEED, 3)) == 1.25 * 30.0
    assert again.limit_s(EVEN.race("lwpd", TUNING_SEED, 3)) == WORKLOADS["mlp"].tuning_limit_s
    assert again.limit_s(EVEN.race("ddp", 0, 3)) == WORKLOADS["mlp"].limit_s


def test_where_all_are_waited_for_the_fewest_updates_win_whatever_the_machine_did_meanwhile(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    for scheme in ("ddp", "k_async"):
        results.add(row(scheme, TUNING_SEED, point=0, time_s=12.0, updates=40))
        results.add(row(scheme, TUNING_SEED, point=1, time_s=10.0, updates=50))
    assert results.tuned() == {(EVEN, "ddp"): 0, (EVEN, "k_async"): 1}


def test_ratios_are_to_the_best_peer_and_races_that_missed_count():
    rows = [row(seed=seed, time_s=10.0 + seed) for seed in range(3)]
    rows += [row("sketch", seed=seed, time_s=5.5) for seed in range(3)]
    rows += [row("lwpd", seed=0, time_s=1.0), row("lwpd", seed=1, time_s=None), row("lwpd", seed=2, time_s=None)]
    rows.append(row("k_sync", seed=TUNING_SEED, time_s=0.1))  # tuning does not count

    ((regime, found),) = standings(rows).items()

    assert regime == EVEN
    assert [(s.scheme, s.time_s, s.ratio, s.reached) for s in found] == [
        ("sketch", 5.5, 2.0, 3),
        ("ddp", 11.0, 1.0, 3),
        ("lwpd", None, None, 1),
    ]
    assert "| lwpd | not reached (1 of 3) |" in markdown(regime, found)


def test_a_scheme_that_was_tuned_anew_stands_at_its_new_point_alone():
    rows = [row(point=1, time_s=10.0), row(point=2, seed=0, time_s=7.0), row(point=2, seed=1, time_s=9.0)]
    ((_, (found,)),) = standings(rows).items()
    assert (found.point, found.runs, found.time_s) == (2, 2, 8.0)


def test_the_bound_is_the_busiest_link_or_the_kth_fastest():
    # Nine updates after the first took 11.25 MB over 12.5 MB/s.
    assert bound_s(row()) == pytest.approx(1.25 / 12.5)
    assert bound_s(row(compute_s_mean=0.5)) == pytest.approx(0.5)
    assert bound_s(row(), least_s=0.7) == pytest.approx(0.7)
    wide = row(sent=[112_500_000] + [0] * (RANKS - 1), first_sent=[0] * RANKS, regime=EVEN._replace(links="asymmetric"))
    assert bound_s(wide) == pytest.approx(0.1)  # host 0's link is 1 Gbit/s
    late = row(first_late_s=2 * 10.0 / 9)  # two updates after the first one
    assert bound_s(late) == pytest.approx(11.25 / 12.5 / 7)
    tail = UNSHAPED._replace(straggler="slow_tail")
    all_of_8, six_of_8 = (bound_s(row(scheme, regime=tail, updates=2000)) for scheme in ("ddp", "k_sync"))
    assert all_of_8 == pytest.approx(0.1 + 1 - 0.9**8, abs=0.05)
    # Three late ones of eight or more, if those of earlier updates were back by then; a good part of them is not.
    assert 0.1 + 2 * 0.038 < six_of_8 < all_of_8


class LateAt(StragglerModel):
    """A second late at some steps, as (worker, step)."""

    def __init__(self, *late):
        self.late = late

    def delay_s(self, worker, step, compute_s):
        return float((worker, step) in self.late)


@pytest.mark.parametrize(("drop", "closes_at"), [(False, 1.25), (True, 1.5)])
def test_the_bound_knows_that_who_is_late_stays_late(drop, closes_at):
    """Worker 2 is late from the first update, worker 1 from the second: which needs worker 2, back at 1.25 s."""
    model = LateAt((2, 0), (1, 1))
    assert until_kth_s(model, 3, 2, 0.25, drop=drop, updates=1) == 0.25
    assert until_kth_s(model, 3, 2, 0.25, drop=drop, updates=2) == closes_at / 2


def test_who_chooses_k_anew_waits_for_all_while_nobody_is_late_and_for_few_while_many_are():
    """Of three, two are late by a second in every second update: K = 3 and 1 in turns, where K = 2 waits each time."""
    model = LateAt(*((worker, step) for worker in (1, 2) for step in range(0, 100, 2)))
    fixed = until_kth_s(model, 3, 2, 0.25, drop=False, updates=100)
    assert until_kth_s(model, 3, 2, 0.25, drop=False, updates=100, adaptive=True) < fixed
    assert until_kth_s(LateAt(), 3, 2, 0.25, drop=False, updates=100, adaptive=True) == pytest.approx(0.25)
    everybody = until_kth_s(model, 3, 3, 0.25, drop=False, updates=100, adaptive=True)
    assert everybody == until_kth_s(model, 3, 3, 0.25, drop=False, updates=100)


def test_an_update_that_needs_fewer_codewords_needs_less_computing():
    half = row("k_sync", regime=UNSHAPED, compute_s_mean=0.0)
    assert bound_s(half, least_s=0.8) == pytest.approx(0.6)  # K is 6 of 8
    alternating = until_kth_s(LateAt(*((2, step) for step in range(100))), 3, 2.5, 0.25, drop=False, updates=100)
    assert alternating == pytest.approx(1.25 / 2)  # worker 2 was on its way already when it was needed


def test_the_bound_of_computing_is_that_of_ranks_that_exchange_nothing():
    (race,) = alone([EVEN, UNSHAPED], [0])
    assert race.regime == UNSHAPED
    assert "callbacks.stop=null" in race.overrides()

    rows = [row(ALONE, seed, None, UNSHAPED, fit_s=3.7 + seed) for seed in range(2)]
    rows += [row(time_s=9.0), row("sketch", time_s=4.5)]
    ((_, found),) = standings(rows).items()

    assert [(s.scheme, s.bound_s, s.kilobytes) for s in found] == [
        ("sketch", pytest.approx(0.3), 1250.0),
        ("ddp", pytest.approx(0.3), 1250.0),
    ]


def test_races_of_other_numbers_of_workers_are_other_regimes():
    more = EVEN._replace(ranks=16)
    assert EVEN.race("ddp", 0, 0).name != more.race("ddp", 0, 0).name
    assert list(standings([row(), row(regime=more)])) == [EVEN, more]


@needs_root
def test_hosts_reach_each_other_and_their_bytes_are_counted():
    said = os.urandom(100_000)
    with ShapedHosts(2, mbit=100.0) as bed:
        first, second = bed.hosts
        assert tell(first, second, said) == [0, 0]
        assert 100_000 < first.traffic().sent < 110_000
        assert 100_000 < second.traffic().received < 110_000
    assert not [name for name in os.listdir("/run/netns") if name == first.namespace]


@pytest.mark.parametrize(("settings", "sentence"), [({"mbit": 0.0}, "mbit=0.0 is no rate"), ({"count": 1}, "count=1")])
def test_testbeds_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ShapedHosts(**{"count": 2, **settings})


@pytest.mark.real_start
@needs_root
def test_a_race_is_run_and_kept(tmp_path):
    command = [sys.executable, "-m", "experiments.bench.race", "--regimes", "1000/none", "--schemes", "powersgd"]
    command += ["--ranks", "2", "--seeds", "0", "--point", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(CONFIG_PATH).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr

    apart, kept = Results(tmp_path / "results.jsonl").rows
    assert (apart["scheme"], apart["updates"], apart["failed"]) == (ALONE, 60, None)
    assert kept["reached"]
    assert kept["val_acc"] >= 0.97
    # What interfaces counted: on ranks that pass no part of the first model on, a ring's bytes and headers.
    assert 1 < min(kept["sent"]) / (kept["updates"] * kept["bytes_up_per_update_per_worker"]) < 1.5
    assert "| powersgd |" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "mlp-1000-none-2ranks-wall.png").read_bytes().startswith(b"\x89PNG")
