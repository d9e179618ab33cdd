"""Real data: scikit-learn's digits and Python's own library need no download; torchvision's data sets are an extra."""

from experiments.data.digits import Digits
from experiments.data.stdlib_text import StdlibText
from experiments.data.vision import Vision

__all__ = ["Digits", "StdlibText", "Vision"]
