"""What ``batch_size`` means: the whole update's batch, or what each worker has under DDP."""

from __future__ import annotations

from typing import Any, Literal

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lwpd_lightning.coding import Code
from lwpd_lightning.data.loader import CodedLoader, refuse_readers

BatchSizeMeans = Literal["global", "per_worker"]


def of_all_workers(loader: Any, workers: int) -> Any:
    """A loader whose batches are as large as those of ``workers`` ranks of DDP together, in the same order.

    Raises:
        ValueError: where it is no DataLoader that can be made anew, or has no ``batch_size`` that could be multiplied.
    """
    if isinstance(loader, CodedLoader):
        return loader  # of an earlier fit, which has enlarged it
    refuse_readers(loader)
    streamed = isinstance(loader.dataset, IterableDataset)
    if loader.batch_size is None or not (streamed or type(loader.batch_sampler) is BatchSampler):
        raise ValueError(
            f"batch_size_means='per_worker' with a training loader whose batches {type(loader.batch_sampler).__name__} "
            f"makes: use a DataLoader with a batch_size, or batch_size_means='global' and batches for all {workers} "
            "workers."
        )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size * workers,
        sampler=None if streamed else loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def share_of_batch(batch_size: int | None, code: Code) -> str:
    """What an update's batch is, and each worker's share of it, in a sentence.

    >>> from lwpd_lightning import lwpd_code
    >>> share_of_batch(64, lwpd_code(8, 4, 2))
    "An update's batch is batch_size=64 samples for all 8 workers together; each computes 32 to 64 of them."
    """
    whole = "a batch of the batch sampler" if batch_size is None else f"batch_size={batch_size} samples"
    of_100, unit = (100, "%") if batch_size is None else (batch_size, "")
    parts = [len(code.parts(worker)) for worker in range(code.n)]
    shares = (f"{of_100 * count // code.data_parts}{unit}" for count in sorted({min(parts), max(parts)}))
    share = " to ".join(shares)
    return f"An update's batch is {whole} for all {code.n} workers together; each computes {share} of them."
