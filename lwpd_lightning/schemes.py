"""Schemes by name: a code and the settings that go with it, as a strategy.

``Trainer(devices=8, strategy=schemes.sketch(8))`` trains with what ``scheme=sketch`` is on the command line, whose
configurations call these functions.

Each takes the number of workers, n, and what its code needs; all else are `LWPDStrategy`'s arguments, by name. A
setting that a scheme chooses is a keyword of its function, with that as the default: who gives another gets it, and is
refused where it cannot work, as by LWPDStrategy. All raise ValueError where there is no such code.
"""

from __future__ import annotations

from typing import Any

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.decoders import Decoder
from lwpd_lightning.coding.families import Repetition
from lwpd_lightning.recommended import COMPRESSOR
from lwpd_lightning.rule.arrivals import Stale
from lwpd_lightning.settings import WaitFor
from lwpd_lightning.strategy import LWPDStrategy


def lwpd(n: int, k: int, t: int, *, compressor: str | None = COMPRESSOR, **options: Any) -> LWPDStrategy:
    """The paper's code: k tasks, t of them a worker, A = k/t data parts and B = t blocks (Soto et al., ICML 2022).

    Codewords and decoded gradients travel as `whitened`'s do. ``compressor="plain"`` is the code without that: both in
    float32, and late codewords applied.

    >>> lwpd(8, k=4, t=2, wait_for=6).code
    Code(family='lwpd', n=8, k=4, t=2, data_parts=2, blocks=2)
    >>> lwpd(8, k=4, t=2).settings.wire_dtype
    'ternary'
    """
    return LWPDStrategy(lwpd_code(n, k, t), compressor=compressor, **options)


def local(n: int, k: int, t: int, *, compressor: str | None = COMPRESSOR, **options: Any) -> LWPDStrategy:
    """A code of the size of `lwpd` whose workers need one data part each, of A = k/t; B = t blocks (`local_code`).

    Codewords travel as those of `lwpd` do.

    >>> local(8, k=4, t=2).code.parts(7)
    (1,)
    """
    if t < 1 or k % t:
        divisors = ", ".join(str(divisor) for divisor in range(1, k + 1) if k % divisor == 0)
        raise ValueError(f"t={t} does not divide k={k}: use t in {divisors}.")
    if n == k // t and t > 1:
        raise ValueError(f"n={n}, k={k}, t={t} leaves one worker a data part, which is a sketch: use scheme=sketch.")
    return LWPDStrategy(local_code(n, data_parts=k // t, blocks=t), compressor=compressor, **options)


def sketch(
    n: int,
    blocks: int = 3,
    *,
    stale: Stale = "drop",
    wire_dtype: str | None = "ternary",
    update_dtype: str | None = "ternary",
    error_feedback: bool = True,
    **options: Any,
) -> LWPDStrategy:
    """1/B of the upload at 1.6 bits a value, for B = blocks, without redundancy: another row in each version.

    What the row and the wire format leave out, workers send later (error feedback: Stich et al., NeurIPS 2018). Few
    blocks of coarse values: at equal bytes they learn faster than many of fine ones; and best without momentum, which
    error feedback has already.

    >>> sketch(8).code
    Code(family='sketch', n=8, k=24, t=3, data_parts=8, blocks=3)
    >>> sketch(8, update_dtype="int8").settings.update_dtype
    'int8'
    """
    return LWPDStrategy(
        local_code(n, data_parts=n, blocks=blocks),
        stale=stale,
        wire_dtype=wire_dtype,
        update_dtype=update_dtype,
        error_feedback=error_feedback,
        **options,
    )


def whitened(n: int, *, compressor: str | None = COMPRESSOR, **options: Any) -> LWPDStrategy:
    """No code; whole gradients at 1.6 bits a value both ways, coarse where the optimizer does not notice it.

    In its own metric, rotated and with an unbiased level (DRIVE: Vargaftik et al., NeurIPS 2021), without a memory: so
    that AdamW and momentum stay as they are.

    >>> settings = whitened(8).settings
    >>> settings.compressor, settings.stale, settings.wire_dtype, settings.update_dtype
    ('whitened', 'drop', 'ternary', 'ternary')
    """
    return LWPDStrategy(uncoded(n), compressor=compressor, **options)


def gradient_coding(
    n: int,
    wait_for: int,
    repetition: Repetition = "cyclic",
    *,
    decoder: Decoder = "exact",
    stale: Stale = "drop",
    **options: Any,
) -> LWPDStrategy:
    """Whole gradients, exact from any K = wait_for of n codewords, by a solve (Tandon et al., ICML 2017).

    s = n - K stragglers: a worker computes s + 1 of n data parts. Stale codewords are dropped, as those of several
    versions do not solve for one gradient. ``repetition="fractional"`` averages instead, where s + 1 divides n.

    >>> gradient_coding(8, wait_for=6).code
    Code(family='gradient', n=8, k=8, t=3, data_parts=8, blocks=1)
    """
    if wait_for is None or isinstance(wait_for, str):
        raise ValueError(f"wait_for={wait_for!r}: a gradient code is made for one K, use a number in 1..{n}.")
    if not 1 <= wait_for <= n:
        raise ValueError(f"wait_for={wait_for} is outside 1..{n}, the number of workers.")
    code = gradient_code(n, stragglers=n - wait_for, repetition=repetition)
    return LWPDStrategy(code, wait_for, decoder=decoder, stale=stale, **options)


def sync(n: int, **options: Any) -> LWPDStrategy:
    """No code, and every worker is waited for (K = n): plain data parallelism through the coordinator.

    >>> sync(8).code
    Code(family='uncoded', n=8, k=8, t=1, data_parts=8, blocks=1)
    """
    return LWPDStrategy(uncoded(n), **options)


def k_sync(n: int, wait_for: WaitFor, *, stale: Stale = "drop", **options: Any) -> LWPDStrategy:
    """No code; the first K = wait_for of n make an update, late gradients are dropped (Dutta et al., 2021).

    >>> k_sync(8, wait_for=6).settings.stale
    'drop'
    """
    return LWPDStrategy(uncoded(n), wait_for, stale=stale, **options)


def k_async(n: int, wait_for: WaitFor, *, stale: Stale = "apply", **options: Any) -> LWPDStrategy:
    """No code; the first K = wait_for of n make an update, late gradients count in the next (Dutta et al., 2021).

    >>> k_async(8, wait_for="adaptive").settings.stale
    'apply'
    """
    return LWPDStrategy(uncoded(n), wait_for, stale=stale, **options)


def k_async_int8(
    n: int,
    wait_for: WaitFor,
    *,
    wire_dtype: str | None = "int8",
    update_dtype: str | None = "int8",
    **options: Any,
) -> LWPDStrategy:
    """`k_async` with gradients in int8 both ways, rounded without bias (as QSGD: Alistarh et al., NeurIPS 2017).

    >>> k_async_int8(8, wait_for=6, update_dtype=None).settings.wire_dtype
    'int8'
    """
    return k_async(n, wait_for, wire_dtype=wire_dtype, update_dtype=update_dtype, **options)
