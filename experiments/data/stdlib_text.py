"""Characters of the running Python's own standard library."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .split import SplitData

VOCABULARY = 128


def stdlib_sources(max_chars: int | None = None) -> list[Tensor]:
    """Text of each top-level module of this Python's standard library, as ASCII codes (uint8).

    The `*.py` files directly in the library's folder, in the order of their names, read as UTF-8; a character outside
    of ASCII, or a byte that is no UTF-8, becomes "?". The text differs between versions of Python, so its hash belongs
    to every result.

    Args:
        max_chars: characters to keep from the beginning, over all files; None for all.

    Raises:
        ValueError: this Python has no source files in its library folder.

    >>> bytes(stdlib_sources(10)[0].tolist()).isascii()
    True
    """
    folder = Path(sysconfig.get_path("stdlib"))
    sources: list[Tensor] = []
    left = sys.maxsize if max_chars is None else max_chars
    for path in sorted(folder.glob("*.py")):
        # Generated when this Python was built: no source text, and its paths tell about the machine.
        if left <= 0 or path.name.startswith("_sysconfigdata"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace").encode("ascii", errors="replace")[:left]
        if text:
            sources.append(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            left -= len(text)
    if not sources:
        raise ValueError(
            f"data=stdlib_text found no source in {folder}: use a Python that comes with its library's source."
        )
    return sources


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


class StdlibText(SplitData):
    """Windows of `stdlib_sources`, int64 (context,) in and out; the end of every file is held out for validation.

    Args:
        batch_size: windows of a whole update, over all data parts of the code.
        context: characters in a window.
        max_chars: characters to use, from the beginning of the text; None for all of it.
        val_share: share of every file held out, in (0, 1).

    Raises:
        ValueError: `val_share` is outside of (0, 1), or a split is shorter than one batch (validation: one window).
    """

    learns = "text"

    def __init__(
        self, batch_size: int, context: int = 128, max_chars: int | None = None, val_share: float = 0.1
    ) -> None:
        super().__init__(batch_size, val_batch_size=64)
        if not 0 < val_share < 1:
            raise ValueError(f"data.val_share={val_share} leaves one split empty: use a number between 0 and 1.")
        self.context = context
        self.max_chars = max_chars
        self.val_share = val_share

    def setup(self, stage: str | None = None) -> None:
        """Read and split, once."""
        if self._splits is not None:
            return
        sources = stdlib_sources(self.max_chars)
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
