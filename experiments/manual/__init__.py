"""The manual's pictures: `python -m experiments.manual` draws them all."""
