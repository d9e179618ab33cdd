"""Small real models: two digit classifiers, a causal transformer, and a classifier of transformers'."""

from .classifier import Classifier, cnn_classifier, mlp_classifier
from .language import LanguageModel, gpt_language_model
from .schedule import warmup_cosine
from .transformer import transformer_classifier

__all__ = [
    "Classifier",
    "LanguageModel",
    "cnn_classifier",
    "gpt_language_model",
    "mlp_classifier",
    "transformer_classifier",
    "warmup_cosine",
]
