"""Experiments around lwpd_lightning: training runs, their data and models, and benchmarks."""

import warnings

# Lightning's own call, which a user can do nothing about.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
