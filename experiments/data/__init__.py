"""Real data that needs no download: scikit-learn's digits and the text of Python's standard library."""

from experiments.data.digits import Digits
from experiments.data.stdlib_text import StdlibText

__all__ = ["Digits", "StdlibText"]
