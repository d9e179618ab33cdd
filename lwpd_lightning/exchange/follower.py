"""The model on a worker, on its way from version to version: it steps as rank 0 steps, or takes over its state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.state import (
    Checksum,
    Checksums,
    MoreThanData,
    Stateful,
    StateLayout,
    digest,
    from_bytes,
    to_bytes,
    whole_state,
)
from lwpd_lightning.exchange.update import Contribution
from lwpd_lightning.links.header import NO_BATCH, Header, ProtocolError
from lwpd_lightning.reduction.reduction import Codeword, Reduction

log = logging.getLogger(__name__)

# Versions that a worker lets pass while a sum of an older one may still be on its way to it.
_PATIENCE = 32


@dataclass(frozen=True)
class Assignment:
    """Which batch to compute at which version; the model already is at the version."""

    version: int
    epoch: int
    batch_index: int
    global_step: int

    @classmethod
    def of(cls, header: Header) -> Assignment:
        """As a message says it."""
        return cls(header.version, header.epoch, header.batch_index, header.global_step)


class Replica(Protocol):
    """The model on a worker, as it is trained there."""

    @property
    def changed(self) -> bool:
        """Whether something else is to be trained than when the exchange began."""

    def enter(self, assignment: Assignment, validate: Callable[[], None] | None = None) -> None:
        """Training has come to this epoch, batch and step; ``validate`` is called where rank 0 validates on its way."""

    def validated(self) -> Tensor | None:
        """What this rank's share of validation comes to, packed; None: it cannot do it."""

    def compute(self, assignment: Assignment, settle: Callable[[], None]) -> tuple[Codeword, Contribution] | None:
        """The codeword of the assignment; None where the batch is left out.

        Args:
            assignment: what to compute, which `enter` was told of.
            settle: called when only the training step itself is still to come: the model is what it is computed at.
        """

    def skip(self, at: Assignment) -> None:
        """A step comes from ``at``, whose batch this worker has not computed."""

    def step(self, at: Assignment) -> None:
        """Make the optimizer's step from ``at`` with the gradients that lie in ``.grad``, as rank 0 makes it."""

    def steer(self, attributes: dict[str, object]) -> None:
        """Set what validation on rank 0 has changed."""


@dataclass(frozen=True)
class _Version:
    """A published version that the model has not reached yet, or is at."""

    header: Header
    told: Tensor  # `to_bytes` of a dictionary: "settings" of the optimizer, "attributes" that validation changed, and
    #               whether rank 0 "validates" it
    buffers: Tensor


class Follower:
    """Where a worker's model is, and how it gets to the newest version.

    Args:
        reduction: this rank's share in adding up; has the decoded gradients.
        model: the module that is trained.
        optimizer: its optimizer.
        precision: holds the scale of the loss, where there is one.
        replica: makes optimizer steps.
        ask_for_state: asks rank 0 for its whole state, which comes as `take_over`.
        tell_memory: tells rank 0 what the sender remembers at a version.
        tell_share: tells rank 0 what this rank's share of validation came to, at a version and a checksum of the model.

    Attributes:
        at: the version that the model is at; -1: at none yet.
        newest: the newest version that was published.
        skipped: batches that other workers computed since this one had rank 0's state.
        computed_at: checksum of what the codeword that was begun last is computed at.
    """

    def __init__(
        self,
        *,
        reduction: Reduction,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Stateful,
        replica: Replica,
        ask_for_state: Callable[[], None],
        tell_memory: Callable[[int, Tensor], None],
        tell_share: Callable[[int, Checksum, Tensor], None],
    ) -> None:
        self._reduction, self._replica = reduction, replica
        self._ask, self._tell_memory, self._tell_share = ask_for_state, tell_memory, tell_share
        self._optimizer, self._precision = optimizer, precision
        self._device = reduction.blocks.device
        self._everything = StateLayout.everything(model, self._device)
        self._buffers = StateLayout.buffers(model, self._device)
        self._buffer_values = self._buffers.buffer()
        self._checksums = Checksums(model, reduction.blocks.parameters)
        self._taken_over: tuple[int, Tensor] | None = None  # the state that came last, and of which version
        self.skipped = 0
        self.computed_at = Checksum(0, 0)
        self.forget()

    def forget(self) -> None:
        """Begin anew, at no version: what comes first is rank 0's state."""
        self.at = self.newest = self._done = -1  # _done: the version whose batch has been computed or left out
        self._validates = -1  # the newest version of which this rank has heard that rank 0 validates it
        self._versions: dict[int, _Version] = {}
        self._resyncing = False
        self._memory_asked: int | None = None  # the version at which rank 0 wants to know what the sender remembers

    def digest(self) -> bytes:
        """Of the whole state, as it is now (`state.digest`)."""
        return digest(whole_state(self._everything, self._optimizer, self._precision, {}))

    @property
    def assignment(self) -> Assignment:
        """What there is to compute where the model is."""
        return Assignment.of(self._versions[self.at].header)

    @property
    def has_batch(self) -> bool:
        """Whether there is a batch at the model's version that has not been computed."""
        version = self._versions.get(self.at)
        return version is not None and self.at != self._done and version.header.batch_index != NO_BATCH

    def computed(self) -> None:
        """The batch of the model's version has been computed, or left out."""
        self._done = self.at

    def settle(self) -> None:
        """Only the training step is still to come: the model is what the codeword is computed at."""
        if self._taken_over is not None and self._taken_over[0] == self.at:
            # Rank 0's state is that of after its hooks, which this rank has run on top of it.
            self._load(self._taken_over[1])
            self._buffers.unpack(self._buffer_values)
        self._taken_over = None
        self.computed_at = self._checksums.take()

    def published(self, header: Header, buffers: Tensor, told: Tensor) -> None:
        """Rank 0 tells of a version, and how to get there."""
        version = self._versions[header.version] = _Version(header, told=told, buffers=buffers)
        if header.version == self.at:  # the state of it came before
            self._listen(version)
        self.newest = max(self.newest, header.version)

    def catch_up(self) -> bool:
        """Step to the newest published version as far as what came allows; whether the model is there."""
        there = self._step_to_newest()
        asked = self._memory_asked
        if asked is not None and (self.at >= asked or self._resyncing):
            self._memory_asked, sender = None, self._reduction.sender
            self._tell_memory(asked, to_bytes({} if sender is None else sender.state_dict()))
        return there

    def _step_to_newest(self) -> bool:
        while self.at < self.newest:
            following = self._versions.get(self.at + 1)
            if following is None or (following.header.decision and self.at not in self._versions):
                self.ask_for_state()
                return False
            if following.header.decision and not self._step(following):
                return False
            self._arrive(following)
        return not self._resyncing

    def ask_for_state(self, *, again: bool = False) -> None:
        """Ask for rank 0's state, once; ``again``: what was asked for may be lost."""
        if again or not self._resyncing:
            self._resyncing = True
            self._ask()

    def remember(self, version: int, memory: Tensor) -> None:
        """Let the sender go on with a memory; an empty one: tell its own, once, where the model is at ``version``."""
        if not memory.numel():
            self._memory_asked = version
            return
        sender, memories = self._reduction.sender, from_bytes(memory, self._device)
        if sender is None or not isinstance(memories, dict):
            raise ProtocolError("a memory of codewords for a rank that has none")
        try:
            sender.load_state_dict(memories)
        except (KeyError, ValueError) as error:
            log.warning("What this worker is to remember of codewords is of another kind, it begins anew: %s", error)

    def take_over(self, header: Header, state: Tensor) -> None:
        """Be where rank 0 is: its whole state has come; where that is empty, this rank's was found to be the same."""
        if header.batch_index != NO_BATCH:
            # Hooks first, whose work on rank 0 is in its state.
            self._replica.enter(Assignment.of(header))
        if state.numel():
            self._load(state)
            self._taken_over = header.version, state
        self._buffer_values = self._buffers.buffer()
        self._buffers.pack(self._buffer_values)
        self._resyncing, self.skipped, self._done = False, 0, -1
        self._reduction.commit(header.decision)
        self._reach(header.version)
        # Rank 0 sends the state of the version that it published last: a newer one there is not.
        self.newest = min(self.newest, header.version)
        self._versions.clear()  # it comes again, with the buffers that its batch is computed on

    def _step(self, version: _Version) -> bool:
        number, reduction = version.header.decision, self._reduction
        if not reduction.readable(number):
            if reduction.hopeless(number) or version.header.version + _PATIENCE < self.newest:
                self.ask_for_state()
            return False
        if not reduction.scatter(number):
            self.ask_for_state()
            return False
        at = self.assignment
        if self._done != self.at:
            self.skipped += 1
            self._replica.skip(at)
        # Rank 0 tells of a version before it steps to it: buffers are those of before the hooks around the step.
        self._listen(version)
        self._replica.step(at)
        reduction.commit(number)
        return True

    def _listen(self, version: _Version) -> None:
        """Take over what is told beside the step to a version."""
        if version.buffers.numel():
            self._buffer_values = version.buffers
        self._buffers.unpack(self._buffer_values)
        if not version.told.numel():
            return
        told = from_bytes(version.told, self._device)
        if (settings := told.get("settings")) is not None:
            groups = self._optimizer.param_groups
            if len(groups) != len(settings):
                raise RuntimeError(
                    f"rank 0's optimizer has {len(settings)} parameter groups, this worker's has {len(groups)}: add "
                    "groups where every rank does, in a hook of the module or in configure_optimizers."
                )
            for group, values in zip(groups, settings, strict=True):
                group.update(values)
        if attributes := told.get("attributes"):
            self._replica.steer(attributes)
        if told.get("validates"):
            self._validates = version.header.version

    def _arrive(self, version: _Version) -> None:
        if not version.header.decision:
            self._listen(version)
        self._reach(version.header.version)
        # Of versions that it only passes rank 0 waits for no share any more.
        validates = self._validates == self.at == self.newest
        self._replica.enter(Assignment.of(version.header), self._validate if validates else None)

    def _validate(self) -> None:
        share = self._replica.validated()
        if share is not None:
            self._tell_share(self.at, self._checksums.take(), share)

    def _reach(self, version: int) -> None:
        self.at = version
        self._versions = {number: kept for number, kept in self._versions.items() if number >= version}

    def _load(self, state: Tensor) -> None:
        values, rest = state[: self._everything.nbytes], state[self._everything.nbytes :]
        self._everything.unpack(values)
        try:
            told = from_bytes(rest, self._device)
            self._optimizer.load_state_dict(told["optimizer"])
            self._precision.load_state_dict(told["precision"])
        except MoreThanData as error:
            raise RuntimeError(
                f"the state of {type(self._optimizer).__name__} holds more than tensors, numbers and plain containers, "
                "which is all that may travel: coded exchange needs an optimizer that workers can hold too."
            ) from error
        self._reduction.receiver.forget()
        if attributes := told["attributes"]:
            self._replica.steer(attributes)
