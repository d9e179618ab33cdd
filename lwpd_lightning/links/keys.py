"""The run's key, from which every peer derives its CURVE key pair: who lacks it can neither join nor listen."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import zmq
from zmq.utils import z85

_KEY_BYTES = 32


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, both halves Z85-encoded (40 bytes)."""

    public: bytes
    secret: bytes


class RunKey:
    """A 256-bit secret made for one run.

    Key pairs are derived with HMAC-SHA256, so that only the secret has to reach a machine (through a fork, or the
    environment), and nothing secret ever passes the rendezvous.

    >>> key = RunKey.generate()
    >>> RunKey.from_hex(key.hex()).worker(3) == key.worker(3) != key.worker(4)
    True
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY_BYTES:
            raise ValueError(f"a run key has {_KEY_BYTES} bytes, this one {len(secret)}.")
        self._secret = secret
        self._pairs: dict[str, KeyPair] = {}  # a public key is a multiplication on the curve, and is asked for often

    @classmethod
    def generate(cls) -> RunKey:
        """A fresh random key."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def from_hex(cls, text: str) -> RunKey:
        """Read a key from 64 hexadecimal digits; raises ValueError for anything else."""
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise ValueError(
                "LWPD_RUN_KEY is not 64 hexadecimal digits; `openssl rand -hex 32` makes one that works."
            ) from None

    def hex(self) -> str:
        """The key as 64 hexadecimal digits, for a child process' environment."""
        return self._secret.hex()

    def run_id(self, generation: int, segment: int = 0) -> bytes:
        """16 bytes that name one exchange of one fit of the run in every header; they reveal nothing of the key."""
        return self._derive(f"run-{generation}-{segment}")[:16]

    def coordinator(self) -> KeyPair:
        """The coordinator's CURVE key pair."""
        return self._pair("coordinator")

    def worker(self, worker: int) -> KeyPair:
        """The CURVE key pair of one worker, by its row of the code."""
        return self._pair(f"worker-{worker}")

    def sign(self, words: str) -> str:
        """Hexadecimal digits that only who knows the key can give to ``words``."""
        return hmac.new(self._derive("words"), words.encode(), hashlib.sha256).hexdigest()

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).digest()

    def _pair(self, purpose: str) -> KeyPair:
        if purpose not in self._pairs:
            secret = z85.encode(self._derive(purpose))
            self._pairs[purpose] = KeyPair(public=zmq.curve_public(secret), secret=secret)
        return self._pairs[purpose]
