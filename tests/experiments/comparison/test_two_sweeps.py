"""Seeds that were added a day later join those of the first day, and a run that was continued counts once."""

import json
import re
import shutil
import statistics

import numpy as np
import pytest
import yaml

from experiments.compare import main
from experiments.comparison import table
from experiments.comparison.baselines import baselines
from experiments.comparison.find import local_runs
from experiments.comparison.groups import group

pytestmark = pytest.mark.slow
REACHED_S = {"lwpd": [1.0, 1.4, 1.2, 1.1, 1.3, 1.5], "k_async": [2.1, 2.0, 2.6, 2.2, 2.5, 2.3]}  # by seed


def copied(run, place, scheme, seed, sweep, **told):
    """A real run as it would be of another sweep and seed, and had it reached its target then."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    summary, config = place / "summary.json", place / "csv/hparams.yaml"
    figures = {"seed": seed, "time_to_target_s": REACHED_S[scheme][seed], **told}
    summary.write_text(json.dumps({**json.loads(summary.read_text()), **figures}))
    settings = yaml.safe_load(config.read_text().replace(str(run), str(place)))
    settings |= {"seed": seed, "sweep": {"name": sweep}, "resumed_from": told.get("resumed_from")}
    config.write_text(yaml.safe_dump(settings))
    return place


def cut_off(run, updates):
    """What is left of a run that was killed: its log so far."""
    (run / "summary.json").unlink()
    log = run / "csv/metrics.csv"
    names, *rows = log.read_text().splitlines()
    step = names.split(",").index("step")
    log.write_text("\n".join([names, *(row for row in rows if float(row.split(",")[step]) <= updates)]) + "\n")


@pytest.fixture
def outputs(sweep, tmp_path):
    """Two sweeps of two schemes over three seeds each; lwpd's seed 4 was killed after 4 updates, and continued."""
    for number, (scheme, run) in enumerate((("lwpd", sweep / "0"), ("k_async", sweep / "2"))):
        for seed in range(6):
            day = "monday" if seed < 3 else "tuesday"
            copied(run, tmp_path / day / str(3 * number + seed % 3), scheme, seed, day)
    begun = tmp_path / "tuesday/1"
    told = {"resumed_from": str(begun), "resumed_at_update": 4, "resumed_at_s": 0.5}
    on = copied(sweep / "0", tmp_path / "on", "lwpd", 4, "tuesday", **told)
    log = on / "csv/metrics.csv"
    names, *rows = log.read_text().splitlines()
    step = names.split(",").index("step")
    log.write_text("\n".join([names, *(row for row in rows if float(row.split(",")[step]) > 4)]) + "\n")
    cut_off(begun, 4)
    return tmp_path


def test_two_sweeps_are_one_group_of_six_for_each_setting_with_the_medians_of_their_summaries(outputs, capsys):
    main([str(outputs), "--baseline", "scheme=k_async", "--out", str(outputs / "out")])
    printed = capsys.readouterr().out

    assert "12 runs in 2 groups" in printed
    page = (outputs / "out/comparison.html").read_text()
    assert f"One run: {outputs}/tuesday/1 and {outputs}/on, which continues it." in page
    assert re.search(r"lwpd +6 ", printed)
    runs, left_out = local_runs([outputs])
    groups = group(runs)
    rows = {row.group.scheme: row for row in table.rows(groups, baselines(groups, "scheme=k_async")[0], "wall")}
    assert left_out == []
    # As a script would have them that reads every summary.json.
    summaries = [json.loads(path.read_text()) for path in outputs.rglob("summary.json")]
    for scheme, row in rows.items():
        of_scheme = [summary for summary in summaries if summary["scheme"] == scheme]
        assert [run.get("seed") for run in row.group.runs] == [0, 1, 2, 3, 4, 5]
        assert row.group.pooled == []
        assert row.costs["wall"].median == statistics.median(one["time_to_target_s"] for one in of_scheme)
        assert row.final.median == pytest.approx(statistics.median(one["val_acc"] for one in of_scheme))
    assert rows["lwpd"].comparison.n == (6,)  # pairs
    assert rows["lwpd"].comparison.p == pytest.approx(2 / 2**6)  # all of one sign
    assert rows["lwpd"].comparison.significant
    (joined,) = (run for run in runs if run.parts)
    (whole,) = (run for run in runs if run.source == str(outputs / "monday/0"))
    np.testing.assert_array_equal(joined.curve.updates, whole.curve.updates)
