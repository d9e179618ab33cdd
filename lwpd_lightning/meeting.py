"""Where the ranks of a fit meet, and under which key."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lwpd_lightning.links.keys import RunKey

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
