"""Progress on a terminal."""

from __future__ import annotations

import sys

from lightning.pytorch.callbacks import TQDMProgressBar


class TerminalProgressBar(TQDMProgressBar):
    """Lightning's progress bar that stays quiet where standard output is a file or a pipe."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        if not sys.stdout.isatty():
            self.disable()
