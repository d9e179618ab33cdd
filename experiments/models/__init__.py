"""Small real models: two digit classifiers and a causal transformer."""

from .classifier import Classifier, cnn_classifier, mlp_classifier
from .language import LanguageModel, gpt_language_model
from .schedule import warmup_cosine

__all__ = ["Classifier", "LanguageModel", "cnn_classifier", "gpt_language_model", "mlp_classifier", "warmup_cosine"]
