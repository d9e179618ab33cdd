"""A convolutional network with BatchNorm, timm's or a small one of our own, on scikit-learn's digits.

    python -m experiments.examples.timm_batchnorm --strategy lwpd
    pip install 'lwpd-lightning[vision]'
    python -m experiments.examples.timm_batchnorm --strategy lwpd --network test_resnet

Under DDP every rank normalises its own share of a batch. `uncoded` gives every worker a share of its own too, so that
the two train alike; a code with fewer data parts than workers (`strategy="lwpd"` has one at two devices) normalises
larger shares. DDP validates with rank 0's running statistics, lwpd with their mean over the workers.
"""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer, seed_everything

from ..refusals import in_a_sentence

with in_a_sentence(ModuleNotFoundError):
    from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, Subset, TensorDataset

from lwpd_lightning import LWPDStrategy, uncoded

from .curve import Curve, options

BATCH = 64  # pictures of an update
TRAINED, VALIDATED = 1280, 512


class Block(nn.Module):
    """Two convolutions, each normalised, and a way past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        return F.relu(x + self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))))


def network(name: str) -> nn.Module:
    """A network for pictures of one channel and ten classes: "own", or one of timm's by its name there.

    Raises:
        SystemExit: timm cannot be imported.
    """
    if name == "own":
        stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
        return nn.Sequential(*stem, Block(16), Block(16), *head)
    try:
        import timm
    except ImportError as error:
        raise SystemExit(
            f"--network {name} needs timm and the torchvision that it imports ({error}): "
            "pip install 'lwpd-lightning[vision]', or use --network own."
        ) from error
    pictured: nn.Module = timm.create_model(name, in_chans=1, num_classes=10)
    return nn.Sequential(nn.Upsample(scale_factor=4), pictured)  # timm's networks halve a picture five times


class Digits(LightningModule):
    """Tells digits apart."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the pictures, in nats."""
        pictures, digits = batch
        loss = F.cross_entropy(self.net(pictures), digits)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same on pictures that are not trained on."""
        pictures, digits = batch
        self.log("val_loss", F.cross_entropy(self.net(pictures), digits), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)


def train(
    strategy: str = "lwpd",
    devices: int = 2,
    epochs: int = 3,
    seed: int = 0,
    network_name: str = "own",
    sampler: Sampler[int] | None = None,
) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the training set.
        seed: of weights and order.
        network_name: see `network`.
        sampler: of the order of samples; None: a random one, another in each epoch.
    """
    seed_everything(seed, verbose=False)
    model = Digits(network(network_name))  # first of all: a refusal is then all that is printed
    pixels, digits = load_digits(return_X_y=True)
    pictures = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    data = TensorDataset(pictures, torch.from_numpy(digits))
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
        # A share of the batch for each worker, as DDP has it: what is normalised together is then the same.
        strategy=LWPDStrategy(code=uncoded(devices)) if strategy == "lwpd" else strategy,
        max_epochs=epochs,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, validation)
    return curve


if __name__ == "__main__":
    parser = options(epochs=3)
    parser.add_argument("--network", dest="network_name", default="own", help='"own", or a name of timm\'s')
    train(**vars(parser.parse_args()))
