"""What all texts have in common: characters in windows, and the end of every file held out."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..given import refuse_share
from .split import SplitData

VOCABULARY = 128


def cut(texts: Iterable[bytes], max_chars: int | None) -> list[Tensor]:
    """The texts' characters (uint8) up to so many over all of them, None for all; a text that is empty is left out.

    >>> [bytes(text.tolist()) for text in cut([b"To be", b"", b"or not"], max_chars=7)]
    [b'To be', b'or']
    """
    kept: list[Tensor] = []
    left = max_chars
    for text in texts:
        if left is not None:
            text, left = text[:left], left - len(text[:left])
        if text:
            kept.append(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        if left == 0:
            break
    return kept


class CharacterWindows(Dataset[tuple[Tensor, Tensor]]):
    """Adjacent windows of a text: item i is characters [i*L, i*L + L) and the same window one character later.

    >>> tokens, following = CharacterWindows(torch.arange(10, dtype=torch.uint8), context=4)[1]
    >>> tokens.tolist(), following.tolist()
    ([4, 5, 6, 7], [5, 6, 7, 8])
    """

    def __init__(self, characters: Tensor, context: int) -> None:
        self.characters = characters
        self.context = context

    def __len__(self) -> int:
        return max(0, (len(self.characters) - 1) // self.context)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.characters[index * self.context : (index + 1) * self.context + 1].long()
        return window[:-1], window[1:]


class TextData(SplitData):
    """Windows of a text, int64 (context,) in and out; the end of every file is held out for validation.

    Args:
        batch_size: windows of a whole update, over all data parts of the code.
        context: characters in a window.
        max_chars: characters to use, from the beginning of the text; None for all of it.
        val_share: share of every file held out, in (0, 1).
        val_batch_size: windows of a validation batch.

    Raises:
        ValueError: `val_share` is outside of (0, 1), or a split is shorter than one batch (validation: one window).
    """

    learns = "text"

    def __init__(
        self,
        batch_size: int,
        context: int = 128,
        max_chars: int | None = None,
        val_share: float = 0.1,
        val_batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size, val_batch_size)
        refuse_share("data.val_share", val_share)
        self.context = context
        self.max_chars = max_chars
        self.val_share = val_share

    @abstractmethod
    def sources(self) -> list[Tensor]:
        """The characters of each file as ASCII codes (uint8), `max_chars` in all."""

    def setup(self, stage: str | None = None) -> None:
        """Read and split, once."""
        if self._splits is not None:
            return
        sources = self.sources()
        self.sha256 = hashlib.sha256(torch.cat(sources).numpy().tobytes()).hexdigest()
        cuts = [round(len(source) * (1 - self.val_share)) for source in sources]
        train, val = (
            CharacterWindows(torch.cat(pieces), self.context)
            for pieces in (
                [source[:cut] for source, cut in zip(sources, cuts, strict=True)],
                [source[cut:] for source, cut in zip(sources, cuts, strict=True)],
            )
        )
        if not 1 <= self.batch_size <= len(train) or not len(val):
            raise ValueError(
                f"data.max_chars={self.max_chars} makes {len(train)} training and {len(val)} validation windows of "
                f"{self.context} characters: use enough for one batch of {self.batch_size} and one window."
            )
        self._splits = (train, val)
