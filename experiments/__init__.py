"""Experiments around lwpd_lightning: training runs, their data and models, and benchmarks."""
