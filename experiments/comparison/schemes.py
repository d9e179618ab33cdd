"""How a scheme is drawn and where it is listed: its file in conf/scheme says so, and a run's configuration keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..names import CONFIG_PATH


class Look(NamedTuple):
    """Of one scheme.

    Attributes:
        colour: as matplotlib reads it.
        marker: of points.
        place: in tables and legends; schemes that are not in conf/scheme come last.
    """

    colour: str = "#4D4D4D"
    marker: str = "o"
    place: float = float("inf")


@cache
def known() -> dict[str, Look]:
    """Scheme -> look, of those in conf/scheme that have one, in their order."""
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in Path(CONFIG_PATH, "scheme").glob("*.yaml"))
    looks = {scheme["name"]: Look(**scheme["look"]) for scheme in files if "look" in scheme}
    return dict(sorted(looks.items(), key=lambda item: item[1].place))


def look_of(name: str, configured: Mapping[str, Any]) -> Look:
    """The look of a scheme.

    Args:
        name: what it is called.
        configured: the `scheme` of a run's configuration, which tells the look of one whose file is not in conf/scheme.
    """
    return known().get(name) or Look(**(configured.get("look") or {}))
