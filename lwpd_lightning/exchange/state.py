"""What of a model travels beside the codewords: parameters and buffers down, normalisation statistics up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lwpd_lightning.coding.wire import WireFormat
from lwpd_lightning.exchange.header import ProtocolError

_ALIGNMENT = 16

# Where a tensor lives: the dictionary of its module and its name there. A tensor is looked up anew each time, because
# a module may replace a buffer (``self.count = self.count + 1``).
_Slot = tuple[dict[str, Tensor | None], str]


class StateLayout:
    """Packs a fixed list of tensors into one flat byte buffer and back.

    Args:
        slots: where the tensors live; shapes and dtypes are those found now and must not change later.
        device: the tensors' device.
        parameter_wire: how parameters are packed; None, and buffers in any case: bit for bit.
    """

    def __init__(self, slots: Iterable[_Slot], device: torch.device, parameter_wire: WireFormat | None = None) -> None:
        self._slots = list(slots)
        self._device = device
        self._shapes: list[tuple[int, int, torch.dtype, torch.Size]] = []
        self._wires: list[WireFormat | None] = []
        offset = 0
        for tensor in self._tensors():
            wire = parameter_wire if isinstance(tensor, nn.Parameter) else None
            nbytes = tensor.nbytes if wire is None else wire.nbytes(tensor.numel())
            self._wires.append(wire)
            self._shapes.append((offset, nbytes, tensor.dtype, tensor.shape))
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset

    @classmethod
    def everything(cls, module: nn.Module, device: torch.device) -> StateLayout:
        """All parameters, frozen ones too, and all buffers: what a worker starts from."""
        return cls(_slots(module, lambda owner, name, tensor: True), device)

    @classmethod
    def per_version(
        cls, module: nn.Module, device: torch.device, parameter_wire: WireFormat | None = None
    ) -> StateLayout:
        """What a step can change: trainable parameters, packed by ``parameter_wire``, and all buffers, exactly.

        Each snapshot is rounded afresh from the parameters themselves, so a worker is never further from them than one
        rounding, however many versions it has seen. Its gradients belong to the rounded point.
        """
        return cls(
            _slots(module, lambda owner, name, tensor: tensor.requires_grad or name not in owner._parameters),
            device,
            parameter_wire,
        )

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
            for view, tensor, wire in zip(self._views(buffer), self._tensors(), self._wires, strict=True):
                packed = tensor if wire is None else wire.pack(tensor.detach().reshape(-1))
                view.copy_(packed, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def unpack(self, payload: Tensor) -> None:
        """Copy values from ``payload`` into the tensors; raises ProtocolError when its size is not ``nbytes``."""
        if payload.numel() != self.nbytes:
            raise ProtocolError(f"state of {payload.numel()} bytes, this model has {self.nbytes}")
        with torch.no_grad():
            for view, tensor, wire in zip(self._views(payload), self._tensors(), self._wires, strict=True):
                tensor.copy_(view if wire is None else wire.unpack(view, tensor.numel()).view(tensor.shape))

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
        for (offset, nbytes, dtype, shape), wire in zip(self._shapes, self._wires, strict=True):
            piece = buffer[offset : offset + nbytes]
            yield piece.view(dtype).view(shape) if wire is None else piece


def _slots(module: nn.Module, wanted: object) -> Iterator[_Slot]:
    assert callable(wanted)
    seen: set[int] = set()
    for owner in module.modules():
        for slots in (owner._parameters, owner._buffers):
            for name, tensor in slots.items():
                if tensor is not None and id(tensor) not in seen and wanted(owner, name, tensor):
                    seen.add(id(tensor))  # a tied parameter travels once
                    yield slots, name  # type: ignore[misc]
