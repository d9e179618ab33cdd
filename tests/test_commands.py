"""A forked command is to a test what a real start is."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lwpd_lightning.testing import Job
from tests.commands import PATIENCE_S, ForkedJob, popen, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, os, random, signal, subprocess, sys, threading

def facts():
    main = sys.modules["__main__"]
    return {
        "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
        "session": os.getsid(0) == os.getpid(), "parent": os.getppid(), "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")), "main": [__name__, main.__file__, main.__dict__ is globals()],
        "module": main.__spec__ and main.__spec__.name, "signals": [str(signal.getsignal(s)) for s in range(1, 32)],
        "streams": [(s.isatty(), s.line_buffering, s.encoding, s.errors) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "comm": open("/proc/self/comm").read(), "executable": sys.executable,
    }

ends = {
    "exception": lambda: 1 / 0,
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "status": lambda: sys.exit(7),
    "word": lambda: sys.exit("a word"),
    "facts": lambda: print(json.dumps(facts(), sort_keys=True)),
    "random": lambda: print(random.random()),
    "ancestors": lambda: print(os.getppid(), os.getsid(0), flush=True),
    "own": lambda: sys.exit(subprocess.run([sys.executable, sys.argv[0], "ancestors"]).returncode or os.getpid() % 100),
    "waiting": lambda: (print("waiting", flush=True), signal.pause()),
}
if __name__ == "__main__":
    ends[sys.argv[1]]()
"""

AGAIN = """
import subprocess, sys
from lwpd_lightning.command import job_command

command, _ = job_command()
if len(sys.argv) > 1:
    print("hydra" in sys.modules)  # which nothing here imports
else:
    print(subprocess.Popen.__name__, flush=True)
    sys.exit(subprocess.run([*command, "again"]).returncode)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "acting.py").write_text(textwrap.dedent(SCRIPT))
    return folder


def really(command, folder):
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=PATIENCE_S, start_new_session=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", [["-m", "acting"], ["acting.py"], ["-u", "acting.py"]], ids=["module", "file", "u"])
@pytest.mark.parametrize("end", ["facts", "exception", "interrupted", "killed", "terminated", "status", "word"])
def test_it_is_the_same_process_and_ends_alike(folder, how, end):
    command = [sys.executable, *how, end, "with words"]

    real, forked = really(command, folder), run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)})

    assert forked.returncode == real.returncode
    assert forked.stdout == real.stdout
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_a_job_that_is_run_again_is_forked(folder):
    (folder / "again.py").write_text(AGAIN)
    done = run([sys.executable, "again.py"], cwd=folder, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == ["ForkedPopen", "True"], done.stderr


def test_no_two_draw_the_same_random_numbers(folder):
    command = [sys.executable, "acting.py", "random"]
    assert run(command, cwd=folder).stdout != run(command, cwd=folder).stdout


def test_what_a_command_starts_is_its_child_and_in_its_session(folder):
    with ForkedJob([sys.executable, "acting.py", "own"], cwd=folder) as job:
        result = job.wait(PATIENCE_S)
        job.wait_until_nothing_is_left(PATIENCE_S)

    parent, session = map(int, result.output.split())
    assert parent == session  # the command that was forked with a session of its own
    assert result.exit_code == parent % 100


@pytest.mark.parametrize("kind", [Job, ForkedJob])
def test_nothing_is_left_of_a_command_that_is_killed(folder, kind):
    with kind([sys.executable, "acting.py", "waiting"], cwd=folder) as job:
        job.wait_for_output("waiting", PATIENCE_S)
        job.kill(signum=signal.SIGTERM)
        assert job.wait(PATIENCE_S).exit_code == -signal.SIGTERM
        job.wait_until_nothing_is_left(PATIENCE_S)


def test_other_commands_are_started_as_ever():
    with popen(["sh", "-c", "exit 3"]) as process:
        assert process.wait(PATIENCE_S) == 3
