"""Where commands print."""

from __future__ import annotations

import sys

from rich.console import Console

_PAGE = 120  # columns of a table that goes to a file or a pipe


def open_console() -> Console:
    """A console as wide as its terminal, or a page where standard output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PAGE)
