"""How workers enter a fit: each proves that it runs the same one, gets rank 0's state, and meets the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import digest
from lwpd_lightning.exchange.update import WorkerFailed
from lwpd_lightning.links.header import NO_BATCH, Header, Op
from lwpd_lightning.links.message import EMPTY, text, words

_DIGEST_BYTES = 32


class Admission:
    """Rank 0's side of the start.

    Args:
        publication: what is sent to workers.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        version: that rank 0's state is at.

    Attributes:
        met: workers with a link to and from every other worker.
    """

    def __init__(self, publication: Publication, fingerprint: bytes, version: int) -> None:
        self.met: set[int] = set()
        self._publication, self._fingerprint, self._version = publication, fingerprint, version
        self._state = publication.state()
        self._digest = digest(self._state)
        self._addresses: dict[int, str] = {}  # of the inboxes of those who joined
        self._introduced = False

    @property
    def awaited(self) -> str:
        """What workers that have not met the others are still to do."""
        return "reach each other" if self._introduced else "join"

    def take(self, worker: int, header: Header, payload: Tensor, rest: Tensor) -> None:
        """Read a worker's message.

        Raises:
            WorkerFailed: it failed, or it came to another fit.
        """
        if header.op is Op.FAILURE:
            raise WorkerFailed(words(payload))
        if header.op is Op.JOIN:
            self._join(worker, bytes(payload.tolist()))
            self._addresses[worker] = words(rest)
        elif header.op is Op.MET:
            self.met.add(worker)

    def lose(self, worker: int) -> None:
        """A worker died."""
        self._addresses.pop(worker, None)

    def introduce(self, workers: Sequence[int]) -> None:
        """Once all ``workers``, those that live, have joined, tell them each other's addresses."""
        if not self._introduced and self._addresses.keys() >= set(workers):
            self._introduced = True
            peers = "\n".join(f"{worker} {self._addresses[worker]}" for worker in workers)
            self._publication.send(workers, self._publication.header(Op.PEERS), text(peers))

    def _join(self, worker: int, joined: bytes) -> None:
        if joined[:-_DIGEST_BYTES] != self._fingerprint:
            raise WorkerFailed(
                f"worker {worker} came to another fit than rank 0: its model's shapes, its code, its batches or its "
                "seed differ."
            )
        # Ranks of one seed have built the same model already.
        needed = EMPTY if joined[-_DIGEST_BYTES:] == self._digest else self._state
        state = self._publication.header(Op.STATE, self._version)._replace(batch_index=NO_BATCH)
        self._publication.send([worker], state, needed)
