"""A variational autoencoder whose KL term comes in gradually, steered by a hook, on scikit-learn's digits.

    python -m experiments.examples.vae_annealing --strategy lwpd

The weight of the KL term is a plain attribute, which `on_train_batch_start` sets from `global_step`: it must be what
it should on every rank.
"""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer, seed_everything

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from .curve import Curve, exact, options

BATCH, LATENT = 64, 6  # pictures of an update, size of their code
TRAINED, VALIDATED = 1280, 512
ANNEALED = 40  # updates until the KL term counts in full


class VAE(LightningModule):
    """Gaussian latents, Bernoulli pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 48), nn.Tanh(), nn.Linear(48, 64))
        self.kl_weight = 0.0

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        """Anneal."""
        self.kl_weight = min(1.0, self.global_step / ANNEALED)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Reconstruction error and weighted divergence, in nats a picture."""
        mean, log_variance = self.encoder(batch[0]).chunk(2, dim=1)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        loss = _error(self.decoder(latent), batch[0]) + self.kl_weight * _divergence(mean, log_variance)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The unweighted sum, at the mean of the latents."""
        mean, log_variance = self.encoder(batch[0]).chunk(2, dim=1)
        loss = _error(self.decoder(mean), batch[0]) + _divergence(mean, log_variance)
        self.log("val_loss", loss, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _error(logits: Tensor, pictures: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, pictures, reduction="sum") / len(pictures)


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean() / 2


def train(strategy: str = "lwpd", devices: int = 2, epochs: int = 5, seed: int = 0) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the training set.
        seed: of weights, order and noise.
    """
    seed_everything(seed, verbose=False)
    pictures = torch.from_numpy(load_digits().data).float() / 16
    # To DDP batch_size is one rank's. To lwpd it is the whole update's, which it divides itself; a strategy with
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = BATCH // devices if strategy == "ddp" else BATCH
    loader = DataLoader(TensorDataset(pictures[:TRAINED]), batch_size=batch_size, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(pictures[TRAINED : TRAINED + VALIDATED]), batch_size=BATCH)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=exact(strategy),
        max_epochs=epochs,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(VAE(), loader, validation)
    return curve


if __name__ == "__main__":
    train(**vars(options(epochs=5).parse_args()))
