"""For mkdocstrings: examples in docstrings are code, where Markdown would take their brackets for links."""

from __future__ import annotations

import re
from typing import Any

import griffe  # comes with mkdocstrings


def fenced(docstring: str) -> str:
    """A docstring with a fence around each example at its margin; those below "Examples:" are known to be code."""
    return re.sub(
        r"^>>> (?:.+\n?)+", lambda found: f"```python\n{found[0].rstrip()}\n```\n", docstring, flags=re.MULTILINE
    ).rstrip()


class Doctests(griffe.Extension):
    """Fences the examples of every object that is documented."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
