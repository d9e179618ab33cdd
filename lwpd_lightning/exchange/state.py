"""What of a model travels beside the codewords: everything once, buffers with each version, statistics up."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.serialization import default_restore_location

from lwpd_lightning.links.header import ProtocolError

_ALIGNMENT = 16
# What a GPU hashes at a time: its second-level cache holds that and what it becomes.
_PIECE_BYTES = 1 << 22
_HASH_BYTES = 8

# Where a tensor lives: the dictionary of its module and its name there. A tensor is looked up anew each time, because
# a module may replace a buffer (``self.count = self.count + 1``).
_Slot = tuple[dict[str, Tensor | None], str]


class MoreThanData(ValueError):
    """Bytes that hold something else than plain containers, numbers and tensors, which is not read."""


class StateLayout:
    """Packs a fixed list of tensors into one flat byte buffer and back.

    Args:
        slots: where the tensors live; shapes and dtypes are those found now and must not change later.
        device: the tensors' device.
    """

    def __init__(self, slots: Iterable[_Slot], device: torch.device) -> None:
        self._slots = list(slots)
        self._device = device
        self._shapes: list[tuple[int, int, torch.dtype, torch.Size]] = []
        offset = 0
        for tensor in self._tensors():
            self._shapes.append((offset, tensor.nbytes, tensor.dtype, tensor.shape))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset

    @classmethod
    def everything(cls, module: nn.Module, device: torch.device) -> StateLayout:
        """All parameters, frozen ones too, and all buffers: what a worker starts from."""
        return cls(_slots(module, lambda owner, name, tensor: True), device)

    @classmethod
    def buffers(cls, module: nn.Module, device: torch.device) -> StateLayout:
        """All buffers: what a training step may change beside the trainable parameters."""
        return cls(_slots(module, lambda owner, name, tensor: name not in owner._parameters), device)

    @classmethod
    def statistics(cls, module: nn.Module, device: torch.device) -> StateLayout:
        """Running statistics of normalisation layers, which workers' batches move and the coordinator averages."""
        return cls(
            _slots(module, lambda owner, name, tensor: isinstance(owner, _NormBase) and name in owner._buffers), device
        )

    def buffer(self) -> Tensor:
        """A host buffer of ``nbytes`` zeros, so that equal states are equal bytes; pinned for a GPU's tensors."""
        return torch.zeros(self.nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def pack(self, buffer: Tensor) -> None:
        """Copy the tensors' values into ``buffer``."""
        with torch.no_grad():
            for view, tensor in zip(self._views(buffer), self._tensors(), strict=True):
                view.copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def unpack(self, payload: Tensor) -> None:
        """Copy values from ``payload`` into the tensors; raises ProtocolError when its size is not ``nbytes``."""
        if payload.numel() != self.nbytes:
            raise ProtocolError(f"state of {payload.numel()} bytes, this model has {self.nbytes}")
        with torch.no_grad():
            for view, tensor in zip(self._views(payload), self._tensors(), strict=True):
                tensor.copy_(view)

    def average(self, payloads: list[Tensor]) -> None:
        """Set the tensors to the mean over ``payloads``; integer tensors (counts of batches) to their maximum."""
        if not payloads or not self._slots:
            return
        with torch.no_grad():
            for views in zip(self._tensors(), *(self._views(payload) for payload in payloads), strict=True):
                tensor, values = views[0], torch.stack(views[1:])
                tensor.copy_(values.mean(dim=0) if values.is_floating_point() else values.amax(dim=0))

    def digest(self) -> bytes:
        """32 bytes that two models share when their tensors agree in number, order, shape and dtype."""
        return hashlib.sha256(repr(self._shapes).encode()).digest()

    def _tensors(self) -> Iterator[Tensor]:
        for owner, name in self._slots:
            tensor = owner[name]
            assert tensor is not None
            yield tensor

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for offset, nbytes, dtype, shape in self._shapes:
            yield buffer[offset : offset + nbytes].view(dtype).view(shape)


def _slots(module: nn.Module, wanted: object) -> Iterator[_Slot]:
    assert callable(wanted)
    seen: set[int] = set()
    for owner in module.modules():
        for slots in (owner._parameters, owner._buffers):
            for name, tensor in slots.items():
                if tensor is not None and id(tensor) not in seen and wanted(owner, name, tensor):
                    seen.add(id(tensor))  # a tied parameter travels once
                    yield slots, name  # type: ignore[misc]


class Stateful(Protocol):
    """What has a state of plain containers, numbers and tensors, as torch has it."""

    def state_dict(self) -> dict[str, Any]:
        """The state now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state."""


def whole_state(
    everything: StateLayout, optimizer: Stateful, precision: Stateful, attributes: dict[str, object]
) -> Tensor:
    """A rank's state as one (nbytes,) uint8 tensor.

    Args:
        everything: parameters and buffers, which come first, as they are.
        optimizer: whose state follows as a file of torch's.
        precision: in the same file, the scale of the loss, where there is one.
        attributes: of the module that validation has changed, in the same file.
    """
    buffer = everything.buffer()
    everything.pack(buffer)
    told = {
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "attributes": attributes,
    }
    return torch.cat([buffer, to_bytes(told)])


def digest(state: Tensor) -> bytes:
    """32 bytes that tell states apart."""
    return hashlib.sha256(state.numpy().data).digest()


class Structure:
    """What a module consists of: which parameters, which of them are trained, and which buffers of what shape.

    Codewords and states are laid out by it, so that an exchange ends where it changes and another begins.

    Args:
        module: as it is now.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = _flags(module)
        # Walking the tree takes several times as long as looking at what its modules hold, as is done in every update.
        self._modules = list(module.modules())
        self._held = self._holds()
        self._dictionaries = [(slots, len(slots)) for m in self._modules for slots in (m._parameters, m._buffers)]
        self._buffers = [
            (m._buffers, name, buffer.shape, buffer.dtype)
            for m in self._modules
            for name, buffer in m._buffers.items()
            if buffer is not None
        ]

    @property
    def changed(self) -> bool:
        """Whether the module consists of something else by now."""
        if self._holds() != self._held:
            if _flags(self._module) != self._parameters or any(len(slots) != n for slots, n in self._dictionaries):
                return True
            self._modules = list(self._module.modules())  # others, which hold nothing that counts
            self._held = self._holds()
        for slots, name, shape, dtype in self._buffers:
            buffer = slots.get(name)
            if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
                return True
        return False

    def _holds(self) -> tuple[list[int], list[tuple[int, bool]], list[int]]:
        """Of the modules: which ones they hold, which parameters and whether those are trained, how many buffers."""
        modules = self._modules
        return (
            [id(child) for m in modules for child in m._modules.values()],
            [(id(p), p.requires_grad) for m in modules for p in m._parameters.values() if p is not None],
            [len(slots) for m in modules for slots in (m._parameters, m._buffers)],
        )


def _flags(module: nn.Module) -> dict[int, bool]:
    return {id(parameter): parameter.requires_grad for parameter in module.parameters()}


class Checksum(NamedTuple):
    """What a codeword was computed at: of the trainable parameters, and of the frozen ones and the buffers."""

    trainable: int
    rest: int


class Checksums:
    """Takes the checksum of a module again and again.

    Args:
        module: the module that is trained.
        trainable: those of its parameters that codewords are of.
    """

    def __init__(self, module: nn.Module, trainable: Sequence[Tensor]) -> None:
        self._trainable = trainable
        of_codewords = {id(parameter) for parameter in trainable}
        self._rest = list(_slots(module, lambda owner, name, tensor: id(tensor) not in of_codewords))

    def take(self) -> Checksum:
        """Of the values as they are now."""
        rest = (owner[name] for owner, name in self._rest)
        return Checksum(checksum(self._trainable), checksum(tensor for tensor in rest if tensor is not None))


@torch.no_grad()
def checksum(parameters: Iterable[Tensor]) -> int:
    """A 64-bit hash of the parameters' shapes, dtypes and bits: whoever steps otherwise gets another one.

    Equal values give equal hashes whatever their layout in memory, on devices of one type. Asked of the values:
    autograd's version counters do not see what is done to a parameter's ``data``.
    """
    hashed, elsewhere = xxhash.xxh3_64(), []
    for parameter in parameters:
        tensor = parameter.detach()
        hashed.update(_kind(tensor.dtype, tensor.shape))
        if tensor.device.type == "cpu":
            hashed.update(_bytes(tensor).numpy().data)
        else:
            elsewhere.append(tensor)
    if elsewhere:
        hashed.update(device_hash(elsewhere).cpu().numpy().tobytes())
    return int.from_bytes(hashed.digest(), "little", signed=True)


@torch.no_grad()
def device_hash(tensors: Iterable[Tensor]) -> Tensor:
    """Hashes of all that lies in ``tensors``, in order, (pieces, 2) int64, computed on their device and left there.

    Each hash is ``sum_i (x_i + r_i) (y_i + s_i)`` mod 2^64 over a piece's 32-bit words, with a random number for each
    place (NH of UMAC, Black et al., CRYPTO 1999): pieces that differ anywhere agree in both with a chance of 2^-64.
    What a piece is follows from the tensors' sizes alone.
    """
    hashes = []
    for piece in _pieces(tensors):
        words = piece.view(torch.int32).view(2, -1)
        first, second = (words + _places(piece.device)[..., : words.shape[1]]).unbind(dim=1)
        hashes.append((first * second).sum(dim=-1))
    return torch.stack(hashes)


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """All bytes, in order, in aligned pieces of _PIECE_BYTES at most: few, since starting a kernel costs most."""
    gathered: list[Tensor] = []
    room = _PIECE_BYTES
    for tensor in tensors:
        rest = _bytes(tensor)
        while rest.numel() > room:
            yield torch.cat([*gathered, rest[:room]])
            gathered, rest, room = [], rest[room:], _PIECE_BYTES
        gathered.append(rest)
        room -= rest.numel()
    whole = torch.cat(gathered)
    yield torch.nn.functional.pad(whole, (0, -whole.numel() % 8))


@lru_cache
def _places(device: torch.device) -> Tensor:
    """The numbers of all places of a piece: (hash, half of the piece, place), less than 2^31 in size."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (2, 2, _PIECE_BYTES // 8), generator=drawn).to(device)


@lru_cache(maxsize=4096)
def _kind(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{dtype}{tuple(shape)};".encode()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def to_bytes(value: object) -> Tensor:
    """Plain containers, numbers and tensors as a (nbytes,) uint8 tensor, which ends with a hash of all before."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.write(xxhash.xxh3_64(stream.getbuffer()).digest())
    return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)


def from_bytes(payload: Tensor, device: torch.device) -> Any:
    """What `to_bytes` made.

    Raises ProtocolError for what it has not made, MoreThanData for anything but plain containers, numbers and tensors.

    A tensor that lay on the sender's GPU comes to ``device``, and one that it kept on the host stays there: optimizers
    count their steps on the host.
    """

    def place(storage: Any, location: str) -> Any:
        if location == "cpu":
            return storage
        return default_restore_location(storage, str(device))  # type: ignore[no-untyped-call]

    told = payload.numpy().tobytes()
    if len(told) < _HASH_BYTES or xxhash.xxh3_64(told[:-_HASH_BYTES]).digest() != told[-_HASH_BYTES:]:
        raise ProtocolError(f"{len(told)} bytes that are no state")
    stream = io.BytesIO(told[:-_HASH_BYTES])
    try:
        return torch.load(stream, map_location=place, weights_only=True)
    except pickle.UnpicklingError as error:
        raise MoreThanData(str(error)) from error
