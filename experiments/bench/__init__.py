"""Measurements, each a module that runs as ``python -m experiments.bench.<name>`` and prints a table."""
