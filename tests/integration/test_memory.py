"""Error feedback over a checkpoint: a run that goes on from one has the bits of one that was not interrupted."""

import sys
from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, local_code, schemes, uncoded
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.remembered import KEY
from tests.commands import ENDING_S, PATIENCE_S, ForkedJob
from tests.integration.models import Classifier, loader, quiet_trainer, sgd
from tests.integration.test_several_machines import free_port

ROOT = Path(__file__).parents[2]
RANKS, SAVED_AT, UPDATES = 3, 7, 14  # of epochs of ten, five where two batches make an update
INT8 = {"wire_dtype": "int8", "update_dtype": "int8", "error_feedback": True}


def late_may_count(**settings):
    return LWPDStrategy(code=uncoded(RANKS), stale="apply", **INT8, **settings)


def without_a_codeword_of_rank_0(**settings):
    code = local_code(RANKS - 1, data_parts=RANKS - 1, blocks=2)
    return LWPDStrategy(code=code, stale="drop", dedicated_coordinator=True, **INT8, **settings)


def sketch(**settings):
    return schemes.sketch(RANKS, blocks=2, **settings)


MADE = {made.__name__: made for made in (late_may_count, without_a_codeword_of_rank_0, sketch)}


def train(made, folder, resume=None, **settings):
    """All updates, or those after a checkpoint; the weights, and the trainer."""
    model = Classifier(sgd)
    keep = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED_AT, save_top_k=-1)
    trainer = quiet_trainer(
        devices=RANKS, strategy=made, callbacks=[] if resume else [keep], enable_checkpointing=not resume,
        max_steps=UPDATES, max_epochs=-1, **settings,
    )  # fmt: skip
    trainer.fit(model, loader(shuffle=True), ckpt_path=resume, weights_only=True if resume else None)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), trainer


def saved(folder):
    return Path(folder) / f"step={SAVED_AT}.ckpt"


@pytest.mark.parametrize(
    ("made", "accumulated"), [(late_may_count, 1), (without_a_codeword_of_rank_0, 1), (sketch, 1), (sketch, 2)]
)
def test_forks_that_share_memory(tmp_path, monkeypatch, caplog, made, accumulated):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    whole, _ = train(made(), tmp_path, accumulate_grad_batches=accumulated)
    on, trainer = train(made(), tmp_path, str(saved(tmp_path)), accumulate_grad_batches=accumulated)
    assert trainer.global_step == UPDATES
    assert torch.equal(on, whole)
    assert "begins anew" not in caplog.text


def test_a_checkpoint_that_lacks_it_is_gone_on_from_and_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    whole, _ = train(sketch(), tmp_path)
    checkpoint = torch.load(saved(tmp_path), weights_only=True)
    del checkpoint[KEY][1]
    torch.save(checkpoint, saved(tmp_path))
    on, _ = train(sketch(), tmp_path, str(saved(tmp_path)))
    assert "The checkpoint lacks the memory of error feedback of workers [1]: theirs begins anew" in caplog.text
    assert not torch.equal(on, whole)


def test_only_schemes_that_remember_something_have_it_in_checkpoints_of_more_than_weights(tmp_path, caplog):
    _, trainer = train(schemes.lwpd(RANKS, k=3, t=1), tmp_path)
    assert KEY not in torch.load(saved(tmp_path), weights_only=True)
    saved(tmp_path).unlink()
    _, trainer = train(sketch(), tmp_path)
    assert KEY in torch.load(saved(tmp_path), weights_only=True)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "lacks" not in caplog.text
    trainer.save_checkpoint(tmp_path / "afterwards.ckpt", weights_only=False)
    assert "The fit is over, so this checkpoint lacks the memory of error feedback" in caplog.text


@pytest.mark.slow
def test_ranks_of_a_launcher_that_exchange_messages(tmp_path):
    common = {
        "PYTHONPATH": str(ROOT), "LWPD_RUN_KEY": RunKey.generate().hex(), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "PL_GLOBAL_SEED": "5",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__)), str(tmp_path)]
    with ExitStack() as stack:
        ranks = [stack.enter_context(ForkedJob(command, env={**common, "LOCAL_RANK": str(r)})) for r in range(RANKS)]
        results = [rank.wait(PATIENCE_S) for rank in ranks]
        assert [result.exit_code for result in results] == [0] * RANKS, "\n".join(r.output for r in results)
        for rank in ranks:
            rank.wait_until_nothing_is_left(ENDING_S)
    assert sum(result.output.count("the same bits") for result in results) == len(MADE)


def main(folder):
    for name, made in MADE.items():
        whole, _ = train(made(), Path(folder) / name)
        on, trainer = train(made(), Path(folder) / name, str(saved(Path(folder) / name)))
        if trainer.is_global_zero:
            print("the same bits" if torch.equal(on, whole) else f"other bits with {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
