"""Faults against real training runs: `python -m experiments.chaos`, and `python -m experiments.chaos.schedules`."""
