"""Lines of prose and of code, to be told apart: of Python's language reference, and of modules of its library."""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import random
from pydoc_data import topics

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..given import refuse_share
from .split import SplitData

PADDING, FIRST_BYTE = 0, 3  # as ByT5's tokenizer has them, with an end and an unknown between
VOCABULARY = FIRST_BYTE + 256
_SHORTEST = 20  # characters; a shorter line may be of either kind


class Lines(SplitData):
    """Lines as tokens, int64 (length,): a byte each, padded with 0; labels 0 (prose) and 1 (code), as many of each.

    The lines are those of the running Python, so they differ between its versions.

    Args:
        batch_size: lines of a whole update, over all data parts of the code.
        length: bytes of a line that are kept.
        samples: lines in all.
        val_share: share of them held out, in (0, 1).

    Raises:
        ValueError: `val_share` is outside of (0, 1), or there are fewer lines, or they are less than a batch.
    """

    learns = "lines"

    def __init__(self, batch_size: int, length: int = 40, samples: int = 2000, val_share: float = 0.2) -> None:
        super().__init__(batch_size, val_batch_size=128)
        refuse_share("data.val_share", val_share)
        self.length, self.samples, self.val_share = length, samples, val_share

    def setup(self, stage: str | None = None) -> None:
        """Read, mix and split, once."""
        if self._splits is not None:
            return
        prose = "\n".join(topics.topics[name] for name in sorted(topics.topics))
        code = "\n".join(ast.unparse(ast.parse(inspect.getsource(module))) for module in (argparse, inspect))
        kinds = [_lines(text) for text in (prose, code)]
        most = 2 * min(map(len, kinds))
        if not 2 <= self.samples <= most:
            raise ValueError(f"data.samples={self.samples} is not to be had of this Python: use 2 to {most}.")
        chosen = [random.Random(0).sample(lines, self.samples // 2) for lines in kinds]
        tokens = torch.stack([self._tokens(line) for pair in zip(*chosen, strict=True) for line in pair])
        labels = torch.arange(len(tokens)) % 2
        self.sha256 = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        held_out = round(len(tokens) * self.val_share)
        train, val = (
            TensorDataset(tokens[part], labels[part]) for part in (slice(held_out, None), slice(None, held_out))
        )
        if not 1 <= self.batch_size <= len(train):
            raise ValueError(
                f"data.batch_size={self.batch_size} is no batch of {len(train)} samples: use 1 to {len(train)}."
            )
        self._splits = (train, val)

    def _tokens(self, line: str) -> Tensor:
        told = [FIRST_BYTE + byte for byte in line.encode()[: self.length]]
        return torch.tensor(told + [PADDING] * (self.length - len(told)))


def _lines(text: str) -> list[str]:
    return sorted({line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORTEST})
