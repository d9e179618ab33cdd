"""The manual as a site: it builds without a complaint, asks for nothing outside, and has every public name."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pkgutil import resolve_name
from urllib.parse import unquote, urlsplit

import pytest

from tests.commands import PATIENCE_S
from tests.manual.pages import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra `docs`)")
PUBLIC = ["lwpd_lightning", "lwpd_lightning.coding", "lwpd_lightning.injection", "lwpd_lightning.testing"]
WHOLE = ["schemes", "callbacks", "worker_callback", "injection.stragglers", "coding.wire", "coding.compressor"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a page loads, where it links to, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif tag == "link" and found.get("rel") in ("canonical", "next", "prev"):
            pass  # for robots
        else:
            self.loads += [found[name] for name in ("src", "href", "srcset", "poster", "data") if found.get(name)]
            self.loads += re.findall(r"url\(([^)]+)\)", found.get("style") or "")


def pages(site):
    return {path: Page(path) for path in site.glob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_no_page_asks_for_anything_outside(site):
    found = pages(site)
    assert len(found) > 14
    for path, page in found.items():
        loaded = [one for one in page.loads if not one.startswith(("#", "data:"))]
        assert [one for one in loaded if urlsplit(one).scheme or urlsplit(one).netloc] == [], path.name
        assert [one for one in loaded if not (site / unquote(urlsplit(one).path)).exists()] == [], path.name
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)'\"]*", style.read_text()) == [], style.name


def test_every_link_of_a_page_leads_somewhere(site):
    found = pages(site)
    for path, page in found.items():
        for link in map(urlsplit, page.links):
            if not link.scheme and not link.netloc and link.path + link.fragment:
                target = site / unquote(link.path) if link.path else path
                assert target.exists(), f"{path.name} links to {link.path}"
                assert not link.fragment or unquote(link.fragment) in found[target].ids, (
                    f"{path.name} to {link.geturl()}"
                )


def test_every_public_name_is_in_the_reference(site):
    public = {}
    for module in map(importlib.import_module, PUBLIC):
        public |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for module in (importlib.import_module(f"lwpd_lightning.{module}") for module in WHOLE):
        own = {
            name: made for name, made in vars(module).items() if getattr(made, "__module__", None) == module.__name__
        }
        public |= {f"{module.__name__}.{name}": made for name, made in own.items() if not name.startswith("_")}
    ids = [one for one in Page(site / "api.html").ids if one and one.startswith("lwpd_lightning.")]
    documented = {id(resolve_name(one)) for one in ids if not one.startswith("lwpd_lightning.exchange")}

    assert len(public) > 30
    assert "<blockquote" not in (site / "api.html").read_text()  # what Markdown makes of an example without a fence
    assert [name for name, made in public.items() if id(made) not in documented] == []
