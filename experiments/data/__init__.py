"""Real data: scikit-learn's digits and Python's own library need no download; Shakespeare's works come from the package
index, and torchvision's data sets are an extra.
"""

from .digits import Digits
from .lines import Lines
from .shakespeare import Shakespeare
from .split import SplitData
from .stdlib_text import StdlibText
from .vision import Vision

__all__ = ["Digits", "Lines", "Shakespeare", "SplitData", "StdlibText", "Vision"]
