"""Coded exchange in code of your own, without the rest of the experiments."""
