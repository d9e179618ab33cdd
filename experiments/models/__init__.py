"""Small real models: two digit classifiers and a causal transformer."""

from experiments.models.classifier import Classifier, cnn_classifier, mlp_classifier
from experiments.models.language import LanguageModel, gpt_language_model
from experiments.models.schedule import warmup_cosine

__all__ = ["Classifier", "LanguageModel", "cnn_classifier", "gpt_language_model", "mlp_classifier", "warmup_cosine"]
