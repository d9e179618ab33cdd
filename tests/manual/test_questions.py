"""What a newcomer asks is answered within two clicks of README: a link that says so, and a section that does."""

import re
from pathlib import Path

import pytest

from tests.manual.pages import ROOT, links, text

# Question -> what a heading says that a reader would follow, and what the section below it has to tell.
QUESTIONS = {
    "where is the API": ("API reference", ["`LWPDStrategy`", "`lwpd_code`"]),
    "how do I log in to W&B": ("log in to W&B", ["wandb login", "logger.mode=online", "logged offline by default"]),
    "what does Ctrl-C leave": ("What does Ctrl-C leave", ["`last.ckpt`", "130", "command that continues"]),
    "how do I cite it": ("How do I cite it", ["@inproceedings", "author", "2022"]),
    "how do I run it on two machines": ("on two machines", ["NODE_RANK=1", "num_nodes=2", "LWPD_RUN_KEY"]),
    "which scheme should I use": ("Which scheme should I use", ["`sketch`", "`k_async`", "DDP"]),
    "what does batch_size mean": ("What does batch_size mean", ["batch_size_means", "per_worker"]),
}
_CLICKS = 2


def sections(page: Path) -> dict[str, tuple[str, str]]:
    """Anchor -> heading and all below it, up to the next of its rank; headings in code are none."""
    blank = re.sub(r"^```.*?^```$", lambda found: re.sub(r"[^\n]", " ", found[0]), page.read_text(), flags=re.M | re.S)
    headings = list(re.finditer(r"^(#+) (.*)$", blank, re.MULTILINE))
    found = {}
    for place, heading in enumerate(headings):
        end = next((h.start() for h in headings[place + 1 :] if len(h[1]) <= len(heading[1])), len(blank))
        anchor = re.sub(r"[^\w\- ]", "", heading[2].lower()).strip().replace(" ", "-")
        found[anchor] = (heading[2], page.read_text()[heading.start() : end])
    return found


def reached() -> list[tuple[str, str]]:
    """(heading, section) of each section that so many clicks show; a link without an anchor shows a whole page."""
    found, seen = [], set()
    shown = [(ROOT / "README.md", "")]
    for _ in range(_CLICKS + 1):
        following = []
        for page, anchor in shown:
            if (page, anchor) not in seen and page.suffix == ".md":
                seen.add((page, anchor))
                found += [sections(page)[anchor]] if anchor else sections(page).values()
                following += links(str(page.relative_to(ROOT)))
        shown = following
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomers_question_is_answered_within_two_clicks(question):
    heading, told = QUESTIONS[question]

    answers = [section for name, section in reached() if heading.lower() in name.replace("`", "").lower()]

    assert answers, f"no heading says {heading!r}"
    missing = [[word for word in told if word not in " ".join(section.split())] for section in answers]
    assert [] in missing, f"{heading!r} leaves out {missing}"


@pytest.mark.parametrize(
    "words", ["Where is the API", "Which scheme should I use", *(h for h, _ in QUESTIONS.values())]
)
def test_readme_itself_asks_the_question(words):
    assert words.lower() in text("README.md").replace("`", "").lower()
