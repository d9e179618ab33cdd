"""Fine-tuning as Hugging Face's users do it: a BERT classifier, AdamW with decay by group, warm-up and linear decay.

    pip install 'lwpd-lightning[examples]'
    python -m experiments.examples.hf_finetuning --strategy lwpd

Nothing is downloaded: the weights are random, the tokens are bytes, and the task is to tell prose (lines of Python's
language reference) from code (lines of its standard library). Batches are dictionaries, padded to their longest line.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import random
from pydoc_data import topics
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from .curve import Curve, exact, options

try:
    from transformers import BertConfig, BertForSequenceClassification, ByT5Tokenizer, DataCollatorWithPadding
    from transformers import get_linear_schedule_with_warmup as warmed_up
except ModuleNotFoundError as error:
    raise SystemExit("transformers is not installed: pip install 'lwpd-lightning[examples]'") from error

BATCH, LENGTH = 32, 40  # lines of an update, bytes of a line at most
TRAINED, VALIDATED = 640, 256


class Finetuned(LightningModule):
    """BERT with a classifier on top."""

    def __init__(self, vocabulary: int, dropout: float) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=LENGTH + 1,  # and the end of the line
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.bert = BertForSequenceClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the lines, in nats."""
        loss: Tensor = self.bert(**batch).loss
        self.log("train_loss", loss, sync_dist=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same on lines that are not trained on."""
        self.log("val_loss", self.bert(**batch).loss, sync_dist=True, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> Any:
        """AdamW, without decay of biases and norms; the rate rises for a tenth of the updates, then falls to 0."""
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=5e-3)
        updates = int(self.trainer.estimated_stepping_batches)
        schedule = warmed_up(optimizer, num_warmup_steps=updates // 10, num_training_steps=updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def samples(tokenizer: ByT5Tokenizer) -> list[dict[str, Any]]:
    """Lines of prose (label 0) and of code (label 1) in turn, tokenized."""
    prose = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    code = "\n".join(ast.unparse(ast.parse(inspect.getsource(module))) for module in (argparse, inspect))
    kinds = [_lines(text) for text in (prose, code)]
    lines = [(line, label) for pair in zip(*kinds, strict=True) for label, line in enumerate(pair)]
    return [{**tokenizer(line, max_length=LENGTH + 1, truncation=True), "labels": label} for line, label in lines]


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 20]
    return random.Random(0).sample(lines, (TRAINED + VALIDATED) // 2)


def train(
    strategy: str = "lwpd",
    devices: int = 2,
    epochs: int = 3,
    seed: int = 0,
    dropout: float = 0.1,
    sampler: Sampler[int] | None = None,
) -> Curve:
    """Train; returns the losses.

    Args:
        strategy: "ddp" or "lwpd".
        devices: processes.
        epochs: over the training set.
        seed: of weights, order and dropout.
        dropout: probability.
        sampler: of the order of samples; None: a random one, another in each epoch.
    """
    seed_everything(seed, verbose=False)
    tokenizer = ByT5Tokenizer()
    data = samples(tokenizer)
    # To DDP batch_size is one rank's. To lwpd it is the whole update's, which it divides itself; a strategy with
    # batch_size_means="per_worker" would leave DDP's number as it is.
    batch_size = BATCH // devices if strategy == "ddp" else BATCH
    padded = DataCollatorWithPadding(tokenizer)
    lines = Subset(data, range(TRAINED))
    loader = DataLoader(
        lines, batch_size=batch_size, shuffle=sampler is None, sampler=sampler, drop_last=True, collate_fn=padded
    )
    validation = DataLoader(Subset(data, range(TRAINED, len(data))), batch_size=BATCH, collate_fn=padded)

    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=exact(strategy),
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Finetuned(len(tokenizer), dropout), loader, validation)
    return curve


if __name__ == "__main__":
    train(**vars(options(epochs=3).parse_args()))
