"""Whether W&B can be reached: asked before a run is put together, since W&B itself tries for minutes."""

from __future__ import annotations

import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

_SERVER = "https://api.wandb.ai"
_PATIENCE_S = 4.0


def refuse_unreachable(mode: str) -> None:
    """With `logger.mode=online`, look for a key and the server.

    Raises:
        ValueError: there is none, or no answer.
    """
    if mode != "online":
        return
    server = os.environ.get("WANDB_BASE_URL", _SERVER)
    if not _has_key(urlsplit(server).hostname or ""):
        raise ValueError("logger.mode=online without a W&B key: run `wandb login`, or use logger.mode=offline.")
    if not _answers(server):
        raise ValueError(
            f"logger.mode=online, but {server} does not answer: use logger.mode=offline, "
            "and `wandb login` and `wandb sync` where there is a network."
        )


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _answers(server: str) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(server, timeout=_PATIENCE_S).close()
        except urllib.error.HTTPError:
            pass  # an answer too
        except (OSError, ValueError):
            return
        answered.set()

    # Looking up a name has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    return answered.is_set()
