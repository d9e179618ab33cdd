"""Real data: scikit-learn's digits and Python's own library need no download; torchvision's data sets are an extra."""

from .digits import Digits
from .stdlib_text import StdlibText
from .vision import Vision

__all__ = ["Digits", "StdlibText", "Vision"]
