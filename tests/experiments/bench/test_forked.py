"""A process that was forked to be a rank ends as one that was started."""

import atexit
import os
import sys

import pytest

from experiments.bench.forked import work_and_end


@pytest.mark.parametrize(("ends", "code"), [(lambda: None, 0), (lambda: sys.exit(3), 3)], ids=["well", "with a code"])
def test_exit_functions_of_its_own_are_run_and_no_others(ends, code):
    read, write = os.pipe()

    def says(word):
        return lambda: os.write(write, word)

    def work():
        atexit.register(says(b"its own"))
        ends()

    theirs = says(b"of who forked it")
    atexit.register(theirs)
    pid = os.fork()
    if not pid:
        work_and_end(work)
    atexit.unregister(theirs)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert os.read(read, 100) == b"its own"
    os.close(read)
