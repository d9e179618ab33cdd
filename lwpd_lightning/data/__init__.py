"""Batches that every rank can name: batch (epoch, index) and its data parts are pure functions of the seed."""

from lwpd_lightning.data.batch import CodedBatch
from lwpd_lightning.data.fit_loop import following, loader_of, training_loader
from lwpd_lightning.data.indexed import fetching_like
from lwpd_lightning.data.loader import CodedLoader
from lwpd_lightning.data.randomness import (
    derive_seed,
    drawing_from,
    isolated_rng,
    seed_everything_locally,
    seed_of_the_run,
)
from lwpd_lightning.data.shares import share_of

__all__ = [
    "CodedBatch",
    "CodedLoader",
    "derive_seed",
    "drawing_from",
    "fetching_like",
    "following",
    "isolated_rng",
    "loader_of",
    "seed_everything_locally",
    "seed_of_the_run",
    "share_of",
    "training_loader",
]
