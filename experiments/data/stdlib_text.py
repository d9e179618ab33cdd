"""Characters of the running Python's own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from torch import Tensor

from .text import TextData, cut


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
    texts = (
        path.read_text(encoding="utf-8", errors="replace").encode("ascii", errors="replace")
        for path in sorted(folder.glob("*.py"))
        # Generated when this Python was built: no source text, and its paths tell about the machine.
        if not path.name.startswith("_sysconfigdata")
    )
    sources = cut(texts, max_chars)
    if not sources:
        raise ValueError(
            f"data=stdlib_text found no source in {folder}: use a Python that comes with its library's source."
        )
    return sources


class StdlibText(TextData):
    """`stdlib_sources`, another text in each version of Python: `Shakespeare` is the same everywhere."""

    def sources(self) -> list[Tensor]:
        """The library's modules."""
        return stdlib_sources(self.max_chars)
