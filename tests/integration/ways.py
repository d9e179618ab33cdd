"""A job that trains the hooked cases one after the other, by whatever way its ranks are started."""

import argparse
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from lwpd_lightning import LWPDStrategy, uncoded
from tests.integration import precise
from tests.integration.hooked import BATCHES, EPOCHS, EpochEnd, Steered, train
from tests.integration.models import classification, loader, quiet_trainer

RANKS = 2


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(classification(dtype=torch.float64))

    def val_dataloader(self):
        return loader(classification(dtype=torch.float64))


class Restored(EpochEnd):
    """Keeps more in a checkpoint than tensors."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["weight"] = self.weight

    def on_load_checkpoint(self, checkpoint):
        self.weight = checkpoint["weight"]


def prepare(folder):
    """Two epochs in one process, and their checkpoint."""
    checkpoint = pl.callbacks.ModelCheckpoint(folder, filename="prepared")
    settings = {"enable_checkpointing": True, "limit_train_batches": BATCHES, "precision": "64-true"}
    quiet_trainer(max_epochs=2, callbacks=[checkpoint], devices=1, **settings).fit(Restored(), Data())


def resumed(folder, **settings):
    """A third epoch from the checkpoint."""
    model = Restored()
    trainer = quiet_trainer(max_epochs=EPOCHS, limit_train_batches=BATCHES, precision="64-true", **settings)
    trainer.fit(model, Data(), ckpt_path=str(Path(folder) / "prepared.ckpt"), weights_only=False)
    return weights(model), trainer


def chosen(folder, **settings):
    """A script that builds on what validation returned, and on the checkpoint that an earlier fit called best."""
    model, settings = Steered(), {"limit_train_batches": BATCHES, "precision": "64-true", **settings}
    checkpoint = pl.callbacks.ModelCheckpoint(folder, monitor="val_loss")
    trainer = quiet_trainer(max_epochs=2, callbacks=[checkpoint], **{**settings, "enable_checkpointing": True})
    model.weight = trainer.validate(model, Data(), verbose=False)[0]["val_loss"]
    trainer.fit(model, Data())  # positional
    assert trainer.validate(model, Data(), verbose=False)[0]["val_loss"] > 0
    second = Steered()
    second.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
    if "strategy" in settings:
        settings["strategy"] = strategy(settings["strategy"].settings.start_method, settings.get("accelerator", "cpu"))
    trainer = quiet_trainer(max_epochs=1, **settings)
    trainer.fit(second, datamodule=Data())
    return weights(second), trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(name, folder, **settings):
    """Train one of the cases, one of the scripts above, or in 16 bits."""
    if name in precise.PRECISIONS:
        return precise.train(name, **settings)
    if name == "resumed":
        return resumed(folder, **settings)
    return chosen(folder, **settings) if name == "chosen" else train(name, **settings)


def alone(name, folder, accelerator="cpu"):
    """What a single process makes of it."""
    if name in precise.PRECISIONS:
        return precise.train_parts(name, RANKS, accelerator)
    return run(name, folder, devices=1, accelerator=accelerator)[0]


def strategy(start, accelerator="cpu", ranks=RANKS):
    """Ranks that, on GPUs, share the first one."""
    devices = [torch.device("cuda", 0)] * ranks if accelerator == "gpu" else None
    return LWPDStrategy(code=uncoded(ranks), start_method=start, timeout_s=100, parallel_devices=devices)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", default="auto")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True)
    options = parser.parse_args()
    for name in options.cases:
        settings = {"strategy": strategy(options.start, options.accelerator), "num_nodes": options.nodes}
        if options.accelerator == "cpu":
            settings["devices"] = RANKS // options.nodes
        settings["accelerator"] = options.accelerator
        state, trainer = run(name, options.folder, **settings)
        if trainer.is_global_zero:
            assert not trainer.strategy.last_update.resyncs
            assert not trainer.strategy.failures
            torch.save(state, options.folder / f"{name}.pt")
    print("DONE", flush=True)


if __name__ == "__main__":
    sys.exit(main())
