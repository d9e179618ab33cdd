"""Callbacks that tests put into real runs; each rank writes a file of its own."""

from pathlib import Path

import lightning.pytorch as pl
import torch

from lwpd_lightning.injection import StragglerInjector


class KeepParameters(pl.Callback):
    """Saves what each rank has learnt, at the end of the fit."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        parameters = {name: value.detach() for name, value in pl_module.named_parameters()}
        torch.save(parameters, self.folder / f"{trainer.global_rank}.pt")


class RecordDelays(StragglerInjector):
    """Writes down who is late when and by how much, instead of sleeping."""

    def __init__(self, model, folder: Path) -> None:
        super().__init__(model)
        self.folder = folder

    def hold_back(self, worker, step, compute_s):
        with (self.folder / str(worker)).open("a") as file:
            print(worker, step, self.model.delay_s(worker, step, compute_s), file=file)
