"""What a process does that was forked to be a rank."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def work_and_end(work: Callable[[], None]) -> NoReturn:
    """Work, answering signals as a new process does, and end as one does, with the code that says how it went.

    Exit functions are run: rank 0's waits until the others have heard how the fit ended.
    """
    code = 1
    atexit._clear()  # what the process that forked this one has registered is for its own end
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        work()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
