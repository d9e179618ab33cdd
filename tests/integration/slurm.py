"""Slurm on one machine, for tests: munged, slurmctld and slurmd in a folder of their own, gone with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.commands import ENDING_S
from tests.integration.test_several_machines import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_START_S = 60.0
_NODE = "localhost"  # a name that is an address too, as it is on a cluster
_CONF = """
ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# As long as its credential lasts a requeued job waits: two minutes, were it not said; 5 s and less are refused.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={node} NodeAddr=127.0.0.1 Port={slurmd} CPUs=64 State=UNKNOWN
PartitionName=all Nodes={node} Default=YES State=UP
"""


def not_here() -> str | None:
    """Why Slurm cannot be started, in words; None where it can be tried."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


class CannotStart(Exception):
    """A daemon did not come up."""


class Slurm:
    """A cluster of one node with 64 declared CPUs; on leaving the ``with`` block its jobs and daemons are ended.

    Raises:
        CannotStart: with what the daemons said.
    """

    def __enter__(self) -> Slurm:
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
        for name in ("state", "spool"):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._conf = self._folder / "slurm.conf"
        self._conf.write_text(
            _CONF.format(folder=self._folder, node=_NODE, controller=free_port(), slurmd=free_port()).lstrip()
        )
        self._environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self._conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []
        at = str(self._folder)
        try:
            self._daemon(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={at}/munge.socket",
                f"--pid-file={at}/munge.pid", f"--log-file={at}/munge.log", f"--seed-file={at}/munge.seed",
            )  # fmt: skip
            self._until_up(lambda: (self._folder / "munge.socket").exists())
            self._daemon("slurmctld", "-D")
            self._daemon("slurmd", "-D", "-N", _NODE)
            self._until_up(lambda: "State=IDLE" in self._said("scontrol", "show", "node", _NODE))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self._folder)

    def submit(self, script: str, cwd: Path, *options: str) -> SlurmJob:
        """Queue a batch script, which runs in ``cwd``."""
        path, output = cwd / "job.sh", cwd / "output"
        path.write_text(script)
        output.touch()
        words = ("--parsable", "--open-mode=append", f"--output={output}", f"--chdir={cwd}", *options)
        return SlurmJob(self, self.run("sbatch", *words, str(path)).strip(), output)

    def run(self, *command: str) -> str:
        """What a command of Slurm's printed; raises CalledProcessError where it failed."""
        return subprocess.run(
            command, env=self._environment, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ).stdout

    def _said(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        return done.stdout

    def _daemon(self, *command: str) -> None:
        with open(self._folder / f"{command[0]}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _until_up(self, up: object) -> None:
        assert callable(up)
        deadline = time.monotonic() + _START_S
        while not up():
            ended = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]  # type: ignore[index]
            if ended or time.monotonic() > deadline:
                said = {path.name: path.read_text(errors="replace")[-500:] for path in self._folder.glob("*.out")}
                raise CannotStart(f"Slurm does not start here: {said}")
            time.sleep(0.1)

    def _processes(self) -> dict[int, dict[str, str]]:
        """Live processes of jobs, batch scripts among them: pid -> environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")  # of a zombie: none
                    environment = dict(word.split("=", 1) for word in words if "=" in word)
                    if environment.get("SLURM_CONF") == str(self._conf) and "SLURM_JOB_ID" in environment:
                        found[int(entry.name)] = environment
        return found


class SlurmJob:
    """A job that was queued.

    Attributes:
        number: Slurm's.
    """

    def __init__(self, slurm: Slurm, number: str, output: Path) -> None:
        self.number, self._slurm, self._output = number, slurm, output

    @property
    def output(self) -> str:
        """What all its starts have printed so far."""
        return self._output.read_text(errors="replace")

    def processes(self) -> dict[int, dict[str, str]]:
        """Its live processes: pid -> environment."""
        there = self._slurm._processes().items()
        return {pid: environment for pid, environment in there if environment["SLURM_JOB_ID"] == self.number}

    def rank(self, rank: int) -> int:
        """The pid of a task of ``srun``."""
        tasks = [p for p, e in self.processes().items() if "SLURM_STEP_ID" in e and e["SLURM_PROCID"] == str(rank)]
        return min(tasks)

    def state(self) -> str:
        """Its state and exit code, in Slurm's words: "COMPLETED 0:0"."""
        words = self._slurm.run("scontrol", "show", "job", self.number).split()
        found = dict(word.split("=", 1) for word in words if "=" in word)
        return f"{found['JobState']} {found['ExitCode']}"

    def until(self, condition: object, timeout_s: float) -> None:
        """Wait until it holds; raises AssertionError with the job's output where it does not in time."""
        assert callable(condition)
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout_s:g} s job {self.number} is {self.state()}:\n{self.output}")
            time.sleep(0.2)

    def wait_for_output(self, text: str, timeout_s: float) -> None:
        """Wait until it has printed ``text``."""
        self.until(lambda: text in self.output, timeout_s)

    def wait(self, timeout_s: float) -> str:
        """Wait until it has ended and no process of it is left; returns its `state`."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.until(lambda: self.state().startswith(over) and not self.processes(), timeout_s)
        return self.state()
