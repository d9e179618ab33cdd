"""Coded exchange for a model that knows nothing of it: a small GPT-2 of Hugging Face transformers, your own Trainer.

    pip install 'lwpd-lightning[examples]'
    python -m experiments.examples.transformers_model

Nothing is downloaded: the weights are random, the tokens are bytes, the text is the source of Python's own argparse.
The strategy is two lines of `main`; everything else is what you would write for a single device. Batches are
dictionaries, input and output embeddings are one tensor, and the multiple-choice head, unused here, gets no gradient.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

try:
    from transformers import ByT5Tokenizer, DataCollatorForLanguageModeling, GPT2Config, GPT2DoubleHeadsModel
except ModuleNotFoundError as error:
    raise SystemExit("transformers is not installed: pip install 'lwpd-lightning[examples]'") from error

from lwpd_lightning import LWPDStrategy, local_code

CONTEXT = 64  # bytes that a sample holds


class ByteModel(LightningModule):
    """GPT-2 that learns which byte comes next."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        sizes = {"vocab_size": vocabulary, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 2}
        self.gpt = GPT2DoubleHeadsModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the bytes of the batch, in nats."""
        loss: Tensor = self.gpt(**batch).loss
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Losses(Callback):
    """Prints the mean loss of every `every` updates."""

    on_workers = False

    def __init__(self, every: int) -> None:
        self.every = every
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Add a loss, and print where it is time."""
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        if trainer.global_step % self.every == 0:
            recent = self.losses[-self.every :]
            print(f"update {trainer.global_step:4d}  loss {sum(recent) / len(recent):.3f}", flush=True)


def samples(tokenizer: ByT5Tokenizer) -> list[dict[str, list[int]]]:
    """The text in windows of `CONTEXT` bytes, tokenized."""
    text = Path(argparse.__file__).read_text(encoding="utf-8").encode("ascii", errors="replace").decode()
    windows = [text[start : start + CONTEXT] for start in range(0, len(text) - CONTEXT, CONTEXT)]
    return [dict(tokenizer(window, add_special_tokens=False)) for window in windows]


def main() -> None:
    """Train on 4 workers; an update is made when the codewords of 3 have arrived."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()

    seed_everything(0, verbose=False)
    tokenizer = ByT5Tokenizer()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loader = DataLoader(samples(tokenizer), batch_size=32, shuffle=True, drop_last=True, collate_fn=collate)
    # Each worker computes half of a batch and sends half as many numbers as the gradient has.
    strategy = LWPDStrategy(code=local_code(4, data_parts=2, blocks=2), wait_for=3)
    trainer = Trainer(
        accelerator="cpu",
        devices=4,
        strategy=strategy,
        max_epochs=options.epochs,
        callbacks=[Losses(every=10)],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(ByteModel(len(tokenizer), tokenizer.eos_token_id), loader)


if __name__ == "__main__":
    main()
