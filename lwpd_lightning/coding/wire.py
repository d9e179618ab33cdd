"""How a codeword looks as bytes: the interface of wire formats, and which there are."""

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

CHUNK = 1024  # values that share one scale or level: 0.4 % of int8, 2 % of ternary; an outlier coarsens its neighbours


class WireFormat(ABC):
    """One encoding of a (d,) codeword as bytes. All machines are taken to be little-endian.

    Made without arguments. `register` makes it known by its name to the strategy's ``wire_dtype`` and ``update_dtype``.

    Attributes:
        name: as `wire_format` takes it.
        lossy: whether it loses so much of float32 values that error feedback has something to send later.
        needs_feedback: whether it loses most of every gradient unless that is fed back.

    >>> wire = wire_format("bfloat16")
    >>> payload = wire.pack(torch.tensor([1.0, -2.0]))
    >>> payload, wire.nbytes(2)
    (tensor([128,  63,   0, 192], dtype=torch.uint8), 4)
    >>> wire.unpack(payload, 2)
    tensor([ 1., -2.], dtype=torch.bfloat16)
    """

    name: str
    lossy: bool = True
    needs_feedback: bool = False

    @classmethod
    def warm_up(cls) -> str | None:
        """Load what packing needs, once, before ranks are forked, which then share it.

        Returns what is missing that would make it faster, in a sentence, if anything.
        """
        return None

    @classmethod
    def unbiased(cls, device: torch.device, seed: int) -> "WireFormat":
        """The format as it is used where nobody feeds back what it loses.

        Args:
            device: of the codewords.
            seed: of the random numbers that it is to round by, if it can; training's own are left alone.
        """
        return cls()

    def begin(self, version: int) -> None:  # noqa: B027 - few formats draw anything
        """What is packed next is of a version: what is drawn for it is a function of that, and of the seed.

        A run that goes on from a checkpoint then rounds as if it had never ended.
        """

    def carries(self, dtype: torch.dtype) -> bool:
        """Whether values of ``dtype`` travel as they are: a packed codeword then is a view of it, and the reverse."""
        return False

    @abstractmethod
    def nbytes(self, size: int) -> int:
        """Exact length in bytes of a packed codeword of ``size`` values."""

    @abstractmethod
    def pack(self, codeword: Tensor) -> Tensor:
        """(d,) of any float dtype -> (nbytes(d),) contiguous uint8, on the codeword's device.

        A codeword that already has the format's dtype is not copied: the bytes are a view of it.
        """

    def unpack(self, payload: Tensor, size: int) -> Tensor:
        """(nbytes(size),) uint8 -> (size,) codeword: float formats in their dtype, as a view where the payload is
        aligned; the others as float32.

        Raises:
            ValueError: where the payload's length is not ``nbytes(size)``: sizes come from a peer.
        """
        self._check(payload, size)
        return self.read(payload, size)

    def _check(self, payload: Tensor, size: int) -> None:
        if payload.dtype != torch.uint8 or payload.shape != (self.nbytes(size),):
            raise ValueError(
                f"payload is {payload.dtype} of shape {tuple(payload.shape)}: "
                f"a {self.name} codeword of size={size} is uint8 of shape ({self.nbytes(size)},)."
            )

    def unpack_into(self, payload: Tensor, out: Tensor) -> None:
        """Write the values of a packed codeword to ``out``, (size,) of a float dtype and contiguous."""
        out.copy_(self.unpack(payload, out.numel()))

    def add_to(self, payload: Tensor, out: Tensor, scale: float) -> None:
        """Add ``scale`` times the values of a packed codeword to ``out``: (size,) of a float dtype and contiguous."""
        out.add_(self.unpack(payload, out.numel()).to(out.device), alpha=scale)

    def finite(self, payload: Tensor, size: int) -> bool:
        """Whether all values of a packed codeword are finite."""
        return all_finite(self.unpack(payload, size))

    @abstractmethod
    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        """The values ``start`` to ``stop`` of a packed codeword of ``size`` values, packed.

        Both ends are multiples of `CHUNK`, or ``size``. A view of ``payload`` where the format has nothing but values.
        """

    @abstractmethod
    def read(self, payload: Tensor, size: int) -> Tensor:
        """`unpack` of a payload whose length has been checked."""


def all_finite(values: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    # A sum is one pass that makes nothing; it may be infinite of values that are not.
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


_FORMATS: dict[str, type[WireFormat]] = {}
_Format = TypeVar("_Format", bound=type[WireFormat])


def register(made: _Format) -> _Format:
    """Make a class known by its name; of two with one name the later one counts."""
    _FORMATS[made.name] = made
    return made


def formats() -> list[type[WireFormat]]:
    """All that are registered.

    >>> [made.name for made in formats()]
    ['float64', 'float32', 'bfloat16', 'int8', 'sign', 'ternary']
    """
    return list(_FORMATS.values())


def format_class(name: str) -> type[WireFormat]:
    """The class of a name; raises ValueError for an unknown one."""
    if name not in _FORMATS:
        *first, last = map(repr, _FORMATS)
        raise ValueError(f"wire format {name!r}: use {', '.join(first)} or {last}.")
    return _FORMATS[name]


def lossy(name: str | None) -> bool:
    """Whether what a format of that name loses could be fed back; None: values travel as they are."""
    return name is not None and format_class(name).lossy


def needs_feedback(name: str | None) -> bool:
    """Whether what a format of that name loses must be fed back; None: values travel as they are."""
    return name is not None and format_class(name).needs_feedback


def lossy_names() -> str:
    """The formats that lose something, in words.

    >>> lossy_names()
    "'bfloat16', 'int8', 'sign' or 'ternary'"
    """
    *first, last = (repr(made.name) for made in formats() if made.lossy)
    return f"{', '.join(first)} or {last}"


def smallest_without_feedback() -> str:
    """The format of the fewest bytes that needs no feedback.

    >>> smallest_without_feedback()
    'int8'
    """
    return min((made for made in formats() if not made.needs_feedback), key=lambda made: made().nbytes(CHUNK)).name


def wire_format(name: str) -> WireFormat:
    """The wire format of a name, which rounds to the nearest.

    Args:
        name: "float64", "float32", "bfloat16", "int8" (one float32 scale for each 1024 values), "ternary" (five values
            a byte and one float32 level for each 1024 values), "sign" (eight), both for use with error feedback or a
            compressor that rotates, or another that was registered.

    Raises:
        ValueError: for an unknown name.
    """
    return format_class(name)()


def dtype_name(dtype: torch.dtype) -> str:
    """The name of the format that carries values of ``dtype`` as they are.

    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")
