"""Transfer learning with Lightning's BackboneFinetuning: the head first, then the layers below it too.

    python -m experiments.examples.backbone_finetuning --strategy lwpd

The backbone has learnt to tell the digits 0 to 4 apart and is put to telling 5 to 9. The callback freezes it, and adds
it to the optimizer at the start of epoch `UNFROZEN`. From there on lwpd trains as one process does; DDP, which
all-reduces only what was trainable when the fit began, lets each rank's backbone go its own way.
"""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, Subset, TensorDataset

from .curve import Curve, exact, options

BATCH = 32  # pictures of an update
TRAINED, VALIDATED = 640, 192
UNFROZEN = 1


def pretrained(pictures: Tensor, digits: Tensor) -> nn.Module:
    """A backbone that has learnt to tell other digits apart."""
    backbone = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
    classifier = nn.Sequential(backbone, nn.Linear(16, 5))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(classifier(pictures), digits).backward()
        optimizer.step()
    return backbone


class Transferred(LightningModule):
    """A new head on an old backbone; BackboneFinetuning wants it to be called that."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(16, 5)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean cross-entropy of the pictures, in nats."""
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Of pictures to train on."""
        loss = self.loss(batch)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Of others."""
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, of the head alone: what is frozen comes later."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def train(
    strategy: str = "lwpd", devices: int = 2, epochs: int = 3, seed: int = 0, sampler: Sampler[int] | None = None
) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the training set.
        seed: of weights and order.
        sampler: of the order of samples; None: a random one, another in each epoch.
    """
    seed_everything(seed, verbose=False)
    pixels, digits = map(torch.from_numpy, load_digits(return_X_y=True))
    pictures, old = pixels.float() / 16, digits < 5
    backbone = pretrained(pictures[old], digits[old])
    data = TensorDataset(pictures[~old], digits[~old] - 5)
    # To DDP batch_size is one rank's. To lwpd it is the whole update's, which it divides itself; a strategy with
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = BATCH // devices if strategy == "ddp" else BATCH
    trained = Subset(data, range(TRAINED))
    loader = DataLoader(trained, batch_size=batch_size, shuffle=sampler is None, sampler=sampler, drop_last=True)
    validation = DataLoader(Subset(data, range(TRAINED, TRAINED + VALIDATED)), batch_size=BATCH)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=exact(strategy),
        max_epochs=epochs,
        callbacks=[curve, BackboneFinetuning(UNFROZEN, backbone_initial_lr=2e-3)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Transferred(backbone), loader, validation)
    return curve


if __name__ == "__main__":
    train(**vars(options(epochs=3).parse_args()))
