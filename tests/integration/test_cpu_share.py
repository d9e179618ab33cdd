"""Workers that are held to a share of a core, by the kernel: real fits, real cgroups where they may be made."""

import os
import time
from pathlib import Path

import pytest

from experiments.peers import DDPPeer
from lwpd_lightning import LWPDStrategy, uncoded
from lwpd_lightning.injection import CpuShare, FaultInjector, cgroup
from lwpd_lightning.worker_callback import WorkerCallback
from tests.integration.models import Classifier, loader, quiet_trainer, sgd

_NOBODY = 65534
_BUSY_S = 0.02


try:
    PLACE, why_not = cgroup.place(0.5), ""
except OSError as error:
    PLACE, why_not = None, str(error)
needs_cgroups = pytest.mark.skipif(PLACE is None, reason=f"cgroups with a limit may not be made: {why_not}")


def left():
    return [path.name for path in PLACE.glob(f"lwpd-{os.getpid()}-*")]


class Witness(WorkerCallback):
    """Works hard for every codeword, and notes which cgroup its worker is in and how often that was throttled."""

    def __init__(self, folder):
        self.folder = folder

    def on_codeword_start(self, trainer, worker, version):
        until = time.process_time() + _BUSY_S
        while time.process_time() < until:
            pass
        group = PLACE / f"lwpd-{os.getppid()}-worker{worker}"
        if group.is_dir():
            inside = str(os.getpid()) in (group / "cgroup.procs").read_text().split()
            counts = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            (self.folder / f"{worker}-{version}").write_text(f"{int(inside)} {counts['nr_throttled']}")


def fit(strategy, *callbacks, devices=4, updates=8):
    trainer = quiet_trainer(
        devices=devices,
        strategy=strategy,
        max_steps=updates,
        callbacks=list(callbacks),
        use_distributed_sampler=not isinstance(strategy, DDPPeer),
    )
    trainer.fit(Classifier(sgd), loader())
    return trainer


@pytest.mark.slow
@needs_cgroups
@pytest.mark.parametrize(("peer", "kills"), [(False, {}), (False, {2: 3}), (True, {})])
def test_a_worker_is_throttled_and_its_cgroup_goes(tmp_path, peer, kills):
    strategy = DDPPeer() if peer else LWPDStrategy(code=uncoded(4), stale="drop")

    trainer = fit(strategy, CpuShare({2: 0.2}), FaultInjector(kills), Witness(tmp_path))

    seen = {tuple(map(int, path.name.split("-"))): path.read_text().split() for path in tmp_path.iterdir()}
    assert trainer.global_step == 8
    assert {worker for worker, _ in seen} == {2}
    assert all(inside == "1" for inside, _ in seen.values())
    # 20 ms of work in a period of 10 ms of which 2 ms are its own.
    assert int(seen[max(seen)][1]) > 0
    assert max(version for _, version in seen) >= (2 if kills else 6)
    if peer:  # whose ranks may end after rank 0's fit
        cgroup.remove(PLACE)
    assert left() == []


@needs_cgroups
def test_no_cgroup_is_left_by_a_fit_that_fails(tmp_path):
    class Fails(WorkerCallback):
        def on_codeword_start(self, trainer, worker, version):
            if worker == 2 and version == 2:
                (tmp_path / "held").write_text((PLACE / f"lwpd-{os.getppid()}-worker2/cgroup.procs").read_text())
                raise RuntimeError("injected failure")

    with pytest.raises(RuntimeError, match="injected failure"):
        fit(LWPDStrategy(code=uncoded(4)), CpuShare({2: 0.2, 3: 0.5}), Fails())

    assert (tmp_path / "held").read_text().strip().isdecimal()
    cgroup.remove(PLACE)  # as this process would at its end
    assert left() == []


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan"), 0.0001])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"^shares\[1\]=.* is no share of a core: use a number from 0.001 to 1\.$"):
        CpuShare({1: share})


@pytest.mark.parametrize(
    ("strategy", "devices", "worker", "allowed"),
    [
        (lambda: LWPDStrategy(code=uncoded(4)), 4, 0, "1 to 3"),
        (lambda: LWPDStrategy(code=uncoded(4)), 4, 4, "1 to 3"),
        (lambda: LWPDStrategy(code=uncoded(4), dedicated_coordinator=True), 5, 4, "0 to 3"),
        (lambda: DDPPeer(), 4, 0, "1 to 3"),
    ],
)
def test_workers_that_cannot_be_held_are_refused_before_any_is_started(strategy, devices, worker, allowed):
    with pytest.raises(ValueError, match=f"^shares names worker {worker}, but only workers {allowed} of the run can"):
        fit(strategy(), CpuShare({worker: 0.5}), devices=devices)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is tried, which takes root")
def test_where_cgroups_may_not_be_made_the_run_is_refused(tmp_path):
    said = tmp_path / "said"
    said.touch()
    said.chmod(0o666)
    tmp_path.chmod(0o777)
    note = said.open("w")
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            trainer = quiet_trainer(devices=4, strategy=LWPDStrategy(code=uncoded(4)))
            CpuShare({1: 0.5}).check(trainer)
        except ValueError as error:
            note.write(str(error))
            note.flush()
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    sentence = Path(said).read_text()
    assert sentence.startswith("shares={1: 0.5} needs a cgroup whose CPU time this process may limit (")
    assert sentence.endswith("or let workers sleep instead (straggler=one_slow).")
    assert "\n" not in sentence
