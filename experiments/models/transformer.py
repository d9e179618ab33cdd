"""A classifier of texts of Hugging Face's, made from a configuration: random weights, and nothing is downloaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .classifier import Classifier
from .schedule import OptimizerFactory, ScheduleFactory


class Logits(nn.Module):
    """Token ids (N, L) to the logits (N, classes) of a model with a classification head; id `padding` is no token."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model = model
        self.padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(tokens != self.padding).long()).logits
        return logits


def transformer_classifier(
    kind: str,
    config: dict[str, Any],
    classes: int,
    optimizer: OptimizerFactory,
    schedule: ScheduleFactory | None = None,
    padding: int = 0,
) -> Classifier:
    """`Classifier` over a model of transformers'.

    Args:
        kind: its `model_type`, such as bert or electra.
        config: arguments of its configuration.
        classes: number of classes.
        optimizer: parameters to optimizer.
        schedule: (optimizer, total_steps=) to a scheduler that steps at every update; None for a constant rate.
        padding: id of what is no token.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: transformers has no such kind, or none that classifies texts.
    """
    # Of the extra `examples`, and seconds to import.
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        settings = AutoConfig.for_model(kind, num_labels=classes, pad_token_id=padding, **config)
        network = AutoModelForSequenceClassification.from_config(settings)
    except ValueError as error:
        raise ValueError(f"model.kind={kind} with model.config={config}: {str(error).splitlines()[0]}") from None
    model = Classifier(Logits(network, padding), classes, optimizer, schedule)
    model.learns = "lines"
    return model
