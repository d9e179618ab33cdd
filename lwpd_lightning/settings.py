"""What a user chooses about the exchange, checked before any process starts.

Long because what does not go together is refused here, setting by setting.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from lwpd_lightning.coding import Code
from lwpd_lightning.coding.compressor import COMPRESSORS, Compressor
from lwpd_lightning.coding.decoders import Decoder, refuse_decoder
from lwpd_lightning.coding.wire import (
    WireFormat,
    dtype_name,
    format_class,
    formats,
    lossy,
    lossy_names,
    needs_feedback,
    smallest_without_feedback,
)
from lwpd_lightning.data.batch_size import BatchSizeMeans
from lwpd_lightning.given import HEARTBEATS, TIMEOUTS, bounds, norm_limit, refuse_unknown, seconds, shown, truth, whole
from lwpd_lightning.recommended import COARSE, COMPRESSOR, default_code
from lwpd_lightning.rule.arrivals import Stale
from lwpd_lightning.rule.norms import NormLimit

StartMethod = Literal["auto", "fork", "rerun"]
WaitFor = int | Literal["adaptive"]
Validation = Literal["rank_zero", "shared"]


@dataclass(frozen=True)
class ExchangeSettings:
    """The strategy's arguments; `LWPDStrategy` documents them. Raises ValueError for values that cannot work."""

    code: Code | None = None
    wait_for: WaitFor | None = None
    wait_for_bounds: tuple[int, int] | None = None
    decoder: Decoder = "projective"
    stale: Stale | None = None
    max_staleness: int | None = None
    wire_dtype: str | None = None
    update_dtype: str | None = None
    error_feedback: bool = False
    min_workers: int | None = None
    heartbeat_s: float = 5.0
    timeout_s: float = 1800.0
    update_timeout_s: float | None = None
    dedicated_coordinator: bool = False
    start_method: StartMethod = "auto"
    batch_size_means: BatchSizeMeans = "global"
    compressor: str | None = None
    restart_workers: bool = True
    tolerate_exceptions: bool = False
    max_codeword_norm: float | str | None = None
    validation: Validation = "rank_zero"

    def __post_init__(self) -> None:
        self._read()
        known = (None, *(made.name for made in formats()))
        for name, value, choices in (
            ("decoder", self.decoder, get_args(Decoder)),
            ("stale", self.stale, (None, *get_args(Stale))),
            ("wire_dtype", self.wire_dtype, known),
            ("update_dtype", self.update_dtype, known),
            ("compressor", self.compressor, (None, *COMPRESSORS)),
            ("start_method", self.start_method, get_args(StartMethod)),
            ("batch_size_means", self.batch_size_means, get_args(BatchSizeMeans)),
            ("validation", self.validation, get_args(Validation)),
        ):
            refuse_unknown(name, value, choices)
        if not self._left_open:
            self._complete()
        if self.wait_for_bounds is not None and self.wait_for != "adaptive":
            raise ValueError(
                f"wait_for_bounds={self.wait_for_bounds} with wait_for={self.wait_for!r}: only wait_for='adaptive' "
                "chooses between bounds."
            )
        if self.max_staleness is not None and (self.stale == "drop" or self.max_staleness < 0):
            raise ValueError(
                f"max_staleness={self.max_staleness} with stale={self.stale!r}: use a number of versions >= 0 with "
                "stale='apply'; stale='drop' already bounds it at 0."
            )
        if self.compressor is not None and self.error_feedback:
            raise ValueError(
                f"compressor={self.compressor!r} with error_feedback=True, which is a compressor too: use one of them."
            )
        if self.made_by.sender.one_version and not self.one_version:
            raise ValueError(
                f"compressor={self.compressor!r} with stale={self.stale!r}: its codewords of different versions do not "
                "add up, use stale='drop'."
            )
        if self.error_feedback and not self._feeds_back:
            raise ValueError(
                f"error_feedback=True with wire_dtype={self.wire_dtype!r} and update_dtype={self.update_dtype!r}: "
                f"nothing is lost that could be fed back, use it with a wire_dtype of {lossy_names()}, "
                "or with a sketch (local_code with data_parts=n), or with such an update_dtype and a code of one block."
            )
        if needs_feedback(self.wire_dtype) and not self.remembers and not self.made_by.sender.spreads:
            raise ValueError(
                f"wire_dtype={self.wire_dtype!r} with error_feedback=False would lose most of every gradient: use "
                f"error_feedback=True, compressor='whitened' with stale='drop', or "
                f"wire_dtype={smallest_without_feedback()!r}."
            )
        if self.code is not None:
            self._check_counts(self.code)

    def _read(self) -> None:
        """Numbers of any library become Python's; what only looks like one (True, 6.0, "5") is refused."""
        if self.code is not None and not isinstance(self.code, Code):
            raise ValueError(
                f"code={shown(self.code)} is no code: use what lwpd_code, local_code, gradient_code or uncoded gives, "
                "or None."
            )
        read: dict[str, object] = {}
        if not isinstance(self.wait_for, str) or self.wait_for != "adaptive":
            read["wait_for"] = whole("wait_for", self.wait_for, "number of codewords", "an integer, or 'adaptive'")
        read["min_workers"] = whole("min_workers", self.min_workers, "number of workers", "an integer")
        read["max_staleness"] = whole("max_staleness", self.max_staleness, "number of versions", "an integer >= 0")
        read["wait_for_bounds"] = bounds(self.wait_for_bounds)
        for name, limits in (("heartbeat_s", HEARTBEATS), ("timeout_s", TIMEOUTS)):
            read[name] = seconds(name, getattr(self, name), *limits)
        if self.update_timeout_s is not None:
            read["update_timeout_s"] = seconds("update_timeout_s", self.update_timeout_s, *TIMEOUTS)
        for name in ("error_feedback", "restart_workers", "tolerate_exceptions", "dedicated_coordinator"):
            read[name] = truth(name, getattr(self, name))
        read["max_codeword_norm"] = norm_limit(self.max_codeword_norm)
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @property
    def _left_open(self) -> bool:
        """Whether nothing was named of what is exchanged, which is then chosen with the code (`resolved`)."""
        named = (self.code, self.stale, self.max_staleness, self.wire_dtype, self.update_dtype, self.compressor)
        return all(setting is None for setting in named) and not self.error_feedback

    def _complete(self) -> None:
        """What was not named, as the compressor needs it."""
        sender = self.made_by.sender
        if self.stale is None:
            object.__setattr__(self, "stale", "drop" if sender.one_version else "apply")
        for name in ("wire_dtype", "update_dtype") if sender.spreads else ():
            object.__setattr__(self, name, getattr(self, name) or COARSE)

    def _check_counts(self, code: Code) -> None:
        n = code.n
        for setting, count in self._counts:
            if not 1 <= count <= n:
                raise ValueError(f"{setting} is outside 1..{n}: the code has n={n} workers, use 1 to {n}.")
        if self.wait_for_bounds is not None and self.wait_for_bounds[0] > self.wait_for_bounds[1]:
            raise ValueError(
                f"wait_for_bounds={self.wait_for_bounds} are the wrong way round: use (least, most) in 1..{code.n}."
            )

        refuse_decoder(code, self.decoder)
        if self.decoder == "exact":
            self._check_exact(code)

        if self.made_by.sender.one_version and len(code.cycle) > 1:
            raise ValueError(
                f"compressor={self.compressor!r} with {code}, whose versions show one row of the gradient each: no "
                "second moments of it are ever seen, use uncoded, lwpd_code, local_code with data_parts < n or "
                "gradient_code, or error_feedback=True in its place."
            )
        if needs_feedback(self.update_dtype) and not self._sums_are_fed_back and not self.made_by.sender.spreads:
            raise ValueError(
                f"update_dtype={self.update_dtype!r} needs error feedback that can take back what the decoded gradient "
                "loses: use error_feedback=True with a sketch (local_code with data_parts=n) and stale='drop' or with "
                "a code of one block, compressor='whitened' with stale='drop', or "
                f"update_dtype={smallest_without_feedback()!r}."
            )
        self._check_solved_weights(code)
        alone = [setting for setting, count in self._counts if count == 1 and setting.startswith("wait_for")]
        if alone and code.n > 1 and not self.dedicated_coordinator and self.decoder != "exact":
            raise ValueError(
                f"{alone[0]} would let rank 0 step on its own codeword alone, which no weight makes unbiased: use "
                f"2..{code.n}, or dedicated_coordinator=True."
            )

    def _check_solved_weights(self, code: Code) -> None:
        """Who packs a sum takes back what that lost, divided by its own codeword's weight, which must not be tiny."""
        if self.decoder == "projective" or not lossy(self.update_dtype) or not self._sums_are_fed_back:
            return
        if code.is_tight:
            works = "decoder='projective'"
        elif lossy(self.wire_dtype):
            works = "update_dtype=None"
        else:
            works = f"update_dtype={smallest_without_feedback()!r} with error_feedback=False"
        raise ValueError(
            f"decoder={self.decoder!r} with update_dtype={self.update_dtype!r} and error_feedback=True: a weight that "
            "is solved for may be next to nothing, and what is lost of the sum, divided by it, would swamp the memory "
            f"of the worker that takes it back; use {works}."
        )

    def _check_exact(self, code: Code) -> None:
        threshold = code.recovery_threshold
        assert threshold is not None
        if self.stale != "drop":
            raise ValueError(
                f"stale={self.stale!r} with decoder='exact': codewords of several versions do not "
                "solve for one gradient, use stale='drop'."
            )
        for setting, count in self._counts:
            if count < threshold:
                raise ValueError(
                    f"{setting} with decoder='exact': the code gives the exact gradient from any {threshold} of "
                    f"{code.n} codewords, so use {threshold}..{code.n}, or decoder='least_squares' for the nearest one."
                )

    @property
    def _feeds_back(self) -> bool:
        """Whether anything is lost that error feedback can send later: of codewords, or by packing a sum of one row."""
        if lossy(self.wire_dtype):
            return True
        return self.code is not None and (len(self.code.cycle) > 1 or (lossy(self.update_dtype) and self.rows == 1))

    @property
    def _sums_are_fed_back(self) -> bool:
        """Whether what packing a sum loses can come back: where it is of one row."""
        return self.remembers and self.rows == 1

    @property
    def _counts(self) -> list[tuple[str, int]]:
        """All numbers of workers that were set, each with its setting in words."""
        counts = [(f"wait_for_bounds={self.wait_for_bounds}", count) for count in self.wait_for_bounds or ()]
        for name, count in (("wait_for", self.wait_for), ("min_workers", self.min_workers)):
            if isinstance(count, int):
                counts.append((f"{name}={count}", count))
        return counts

    @property
    def waits(self) -> tuple[int, int]:
        """The least and the most codewords that an update waits for; equal where K is fixed."""
        assert self.code is not None
        if isinstance(self.wait_for, int):
            return self.wait_for, self.wait_for
        least = 2 if not self.dedicated_coordinator else 1
        if self.decoder == "exact":
            least = self.code.recovery_threshold or least
        return self.wait_for_bounds or (min(least, self.code.n), self.code.n)

    @property
    def fewest_workers(self) -> int:
        """The run fails when fewer live: min_workers where given, else what "exact" needs, else 2."""
        assert self.code is not None
        if self.min_workers is not None:
            return self.min_workers
        if self.decoder == "exact" and self.code.recovery_threshold is not None:
            return self.code.recovery_threshold
        return min(2, self.code.n)

    def resolved(self, world_size: int) -> ExchangeSettings:
        """The settings for ``world_size`` processes: a code where none was given, K = n where K was not.

        Where nothing was named of what is exchanged, they are those that `schemes.lwpd` has; one worker sends nothing,
        and loses nothing.

        Raises:
            ValueError: when the code has another number of workers, or K is not among 1..n.
        """
        workers = world_size - self.dedicated_coordinator
        if workers < 1:
            needed = "2 or more" if self.code is None else f"{self.code.n + 1}"
            raise ValueError(f"devices=1 with dedicated_coordinator=True leaves no worker: use devices={needed}.")
        code = default_code(workers) if self.code is None else self.code
        if code.n != workers:
            beside = " and a dedicated coordinator" if self.dedicated_coordinator else ""
            raise ValueError(
                f"the world size is {world_size} (devices x num_nodes) but the code has n={code.n} workers{beside}: "
                f"use devices={code.n + self.dedicated_coordinator} on one node, or a code with n={workers}."
            )
        settings = replace(
            self,
            code=code,
            wait_for=self.wait_for if self.wait_for is not None else code.n,
            compressor=COMPRESSOR if self._left_open and code.n > 1 else self.compressor,
        )
        settings._check_counts(code)
        return settings

    def started_on(self, device: torch.device, num_nodes: int, external: bool) -> ExchangeSettings:
        """The settings with "auto" start resolved; ``external``: something else starts the processes.

        Raises:
            ValueError: when workers cannot be forked as asked.
        """
        # Where a GPU is visible, torch's autograd starts threads that a fork of the process would miss.
        one_host = device.type == "cpu" and num_nodes == 1 and not external and not torch.cuda.is_available()
        forkable = one_host and "fork" in multiprocessing.get_all_start_methods()
        if self.start_method == "fork" and not forkable:
            beside = " under an outside launcher" if external else ""
            if device.type == "cpu" and torch.cuda.is_available():
                beside += " on a machine whose GPU torch sees (CUDA_VISIBLE_DEVICES='' hides it)"
            raise ValueError(
                f"start_method='fork' with device {device.type!r} and num_nodes={num_nodes}{beside}: only a single "
                "machine's CPU ranks that rank 0 starts itself can be forked, use 'rerun'."
            )
        if self.start_method != "auto":
            return self
        return replace(self, start_method="fork" if forkable else "rerun")

    @property
    def made_by(self) -> Compressor:
        """The sender and the receiver that ranks make."""
        return COMPRESSORS[self.compressor or ("error_feedback" if self.error_feedback else "plain")]

    @property
    def norm_limit(self) -> NormLimit | None:
        """How large a codeword may be; None: that is not looked at."""
        return NormLimit.read(self.max_codeword_norm)

    @property
    def remembers(self) -> bool:
        """Whether what is not sent of a gradient comes with later codewords."""
        return self.made_by.sender.remembers

    @property
    def rows(self) -> int:
        """Rows of d values that a decoded gradient has."""
        assert self.code is not None
        return self.made_by.receiver.count_rows(self.code, self.one_version)

    @property
    def one_version(self) -> bool:
        """Whether all codewords of an update are of its own version."""
        return self.stale == "drop"

    def wire(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> WireFormat:
        """How codewords of ``dtype`` on ``device`` travel; without bias, if it can be, unless errors are fed back."""
        return _wire(self.wire_dtype, dtype, device, self.remembers, seed)

    def sum_wire(self, dtype: torch.dtype, seed: int = 0) -> WireFormat:
        """How decoded gradients travel; without bias, if it can be, unless what is lost of them can be fed back."""
        return _wire(self.update_dtype, dtype, torch.device("cpu"), self._sums_are_fed_back, seed)

    def warm_up(self) -> list[str]:
        """Load what the exchange needs, before ranks are forked, which then share it.

        Returns what is missing that would make it faster, in a sentence each.
        """
        assert self.code is not None
        self.made_by.receiver.warm_up(self.code)
        named = {name: None for name in (self.wire_dtype, self.update_dtype) if name is not None}
        return [advice for name in named if (advice := format_class(name).warm_up()) is not None]


def _wire(name: str | None, dtype: torch.dtype, device: torch.device, fed_back: bool, seed: int) -> WireFormat:
    made = format_class(name or dtype_name(dtype))
    return made() if fed_back else made.unbiased(device, seed)
