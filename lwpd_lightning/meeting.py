"""Where the ranks of a fit meet, and under which key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwpd_lightning.links import rendezvous
from lwpd_lightning.links.keys import RunKey

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment

ENV_KEY = "LWPD_RUN_KEY"
ENV_FIT = "LWPD_FIT"
ENV_PARENT = "LWPD_PARENT"


@dataclass(frozen=True)
class Meeting:
    """Where and under which key the ranks of a fit meet.

    Attributes:
        run_key: the run's secret.
        host: address of the store.
        port: its port.
        generation: which fit of the run it is.
        segment: which exchange of the fit: what is trained may change.
    """

    run_key: RunKey
    host: str
    port: int
    generation: int
    segment: int = 0

    @property
    def run_id(self) -> bytes:
        """16 bytes that every message of the exchange carries."""
        return self.run_key.run_id(self.generation, self.segment)

    def store(self, timeout_s: float) -> rendezvous.Rendezvous:
        """Connect to the store, which rank 0 serves; raises TimeoutError where it does not in ``timeout_s`` seconds."""
        key, generation = self.run_key, self.generation
        return rendezvous.Rendezvous.join(self.host, self.port, generation, timeout_s, key, _attempt())

    def environment(self, node_rank: int, local_rank: int) -> dict[str, str]:
        """What a process that reruns the job must find in its environment to become this worker."""
        return {
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
            "NODE_RANK": str(node_rank),
            "LOCAL_RANK": str(local_rank),
            ENV_KEY: self.run_key.hex(),
            ENV_FIT: str(self.generation),
            ENV_PARENT: str(os.getpid()),
        }


def starts_elsewhere(environment: ClusterEnvironment, num_nodes: int) -> bool:
    """Whether there are ranks that rank 0 does not start: on other machines, or all under an outside launcher."""
    return num_nodes > 1 or environment.creates_processes_externally


def run_key_for(environment: ClusterEnvironment, num_nodes: int) -> RunKey:
    """The run's key: made here, or from LWPD_RUN_KEY where other nodes or a launcher must share it.

    Raises:
        ValueError: where it must be shared and is not in the environment.
    """
    if ENV_KEY in os.environ:
        return RunKey.from_hex(os.environ[ENV_KEY])
    if starts_elsewhere(environment, num_nodes):
        raise ValueError(
            f"{ENV_KEY} is not set, but processes that were started elsewhere (num_nodes={num_nodes}) must prove the "
            f"run's key: set it to the same value everywhere, for example {ENV_KEY}=$(openssl rand -hex 32)."
        )
    return RunKey.generate()


def meet_elsewhere(environment: ClusterEnvironment, num_nodes: int, timeout_s: float) -> rendezvous.Rendezvous:
    """Open the store at the main address, on which processes that this one does not start meet for all calls of a job.

    Under torchrun its agent has one there.
    """
    host, port = rendezvous.resolve(environment.main_address), environment.main_port
    key = run_key_for(environment, num_nodes)
    if _agent_has_store():
        return rendezvous.Rendezvous.join(host, port, 0, timeout_s, key, _attempt())
    return rendezvous.Rendezvous.host(rendezvous.listen(host, port), 0, timeout_s, key)


def _agent_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _attempt() -> str:
    """Which start of the job this is in the store, by torchrun's count; a store that rank 0 serves has but one."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _agent_has_store() else "0"
