"""The plain loops train what the race's ranks train: the same model, batches, schedule and validation."""

from dataclasses import dataclass

import pytest

from experiments import job  # noqa: F401 - imported here, once, for all ranks
from experiments.bench.plain import loop
from experiments.bench.plain.loops import run_rank
from experiments.bench.race import ranks
from experiments.bench.race.plan import Race
from lwpd_lightning.links.rendezvous import LOOPBACK, listen
from tests.commands import PATIENCE_S

pytestmark = pytest.mark.slow


@dataclass(frozen=True, order=True)
class Short(Race):
    """Four updates of a small model, with a validation after each second one."""

    def overrides(self) -> list[str]:
        return [*super().overrides(), "model.hidden=[16]", "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.fixture(autouse=True)
def _own_ports(monkeypatch):
    """Other tests, or a race, may be on this machine's loopback."""
    for module, name in ((ranks, "_PORT"), (loop, "_STORE_PORT")):
        with listen(LOOPBACK, 0) as free:
            monkeypatch.setattr(module, name, free.getsockname()[1])


@pytest.mark.parametrize("scheme", ["ddp", "powersgd"])
def test_without_lightning_the_peers_come_to_the_same_accuracy(tmp_path, scheme):
    race = Short("mlp", "unshaped", "none", scheme, seed=0, point=1, ranks=2)

    plain = ranks.run(race, tmp_path / "plain", PATIENCE_S, run_rank)
    raced = ranks.run(race, tmp_path / "raced", PATIENCE_S)

    assert plain["failed"] is raced["failed"] is None
    assert plain["updates"] == raced["updates"] == 4
    assert plain["val_acc"] == raced["val_acc"]
    assert plain["parameters"] == raced["parameters"]
