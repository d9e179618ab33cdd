"""What a process does that was forked to be a rank."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def work_and_end(work: Callable[[], None], at_last: Callable[[], None] = lambda: None) -> NoReturn:
    """Work, answering signals as a new process does, then ``at_last``; end with the code that says how it went."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        work()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        at_last()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
