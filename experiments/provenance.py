"""What a result was made with: the commit and the versions of libraries."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("lwpd-lightning", "torch", "lightning", "numpy", "pyzmq", "hydra-core", "torchmetrics", "wandb")


def git_revision() -> str | None:
    """Commit of the checkout that this code runs from, "-dirty" when changed since; None for an installed package."""
    source = Path(__file__).resolve().parents[1]
    # An installed copy may lie inside of somebody else's checkout.
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Version of Python and of each installed library that a result depends on.

    >>> "torch" in versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
