"""What stands in the pages of the manual: commands, Python, links, headings."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CURRENT = [name for name in NAMES if name != "CHANGELOG.md"]  # which tells of what was

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(name):
    return (ROOT / name).read_text()


def python(name):
    """The page's blocks of Python."""
    return [body for language, body in _FENCE.findall(text(name)) if language == "python"]


def lines_of_code(name):
    """Every line of a block that is no Python, and every word of code in a sentence, which may be broken over lines."""
    page = text(name)
    blocks = [body for language, body in _FENCE.findall(page) if language not in ("python", "text", "bibtex")]
    prose = _FENCE.sub("", page)
    blocks += re.findall(r"(?:^ {4}.*\n)+", prose, re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return [line.strip() for block in blocks for line in block.splitlines()] + spans


def commands(name):
    """(module, words) of every `python -m module words` on the page."""
    found = []
    for line in lines_of_code(name):
        for part in line.split(" && "):
            called = re.match(r"(?:\w+=\S* )*(?:\S*/)?python3? -m ((?:experiments|tests)[\w.]*)(.*)", part)
            if called and "<" not in part:
                found.append((called[1], shlex.split(called[2], comments=True)))
    return found


def links(name):
    """(file, anchor) of every link to a file of this repository; the anchor may be empty."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text(name)))
    local = [target.partition("#") for target in targets if not target.startswith(("http://", "https://"))]
    here = ROOT / name
    return [((here.parent / file).resolve() if file else here, anchor) for file, _, anchor in local]


def anchors(page):
    """The anchors of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
