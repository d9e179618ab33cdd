"""Where a fit is on rank 0: what its workers were told last, and what has become of its model since."""

from __future__ import annotations

from lwpd_lightning.exchange.update import How

# Epoch and index of a batch.
Batch = tuple[int, int]


class Timeline:
    """Says what is to be published next, and how.

    Rank 0 publishes a version `ahead` of its own step, so that workers step while it does; it has `stepped`, or not;
    meanwhile the model may have `moved` otherwise; and when the next update `begins`, what was published holds or not.

    Args:
        workers_ask: whether the module itself may leave a step out. Workers ask it as rank 0 does, so a step that
            rank 0 has not made they have not made either.

    Attributes:
        accumulating: whether the open update still waits for batches of its own.
        over: whether the fit has been stopped.
    """

    def __init__(self, *, workers_ask: bool) -> None:
        self.accumulating = self.over = False
        self._workers_ask = workers_ask
        self._published: Batch | None = None
        self._owes_step = False  # whether workers may have made a step that is still to come here
        self._moved = False

    def ahead(self, batch: Batch) -> How:
        """Rank 0 is about to step: the version that this leads to is published with the ``batch`` that comes next."""
        self._published, self._owes_step = batch, True
        return How.AHEAD

    def stepped(self) -> None:
        """Rank 0 has made its step."""
        self._owes_step = False

    def moved(self) -> None:
        """Validation has changed the model, or its attributes: what was published ahead is not where rank 0 is."""
        self._moved = True

    def begins(self, batch: Batch) -> How | None:
        """Rank 0 begins an update with ``batch``, which is published from now on: how, or None where it has been.

        What was published ahead of a change must not count, nor what was published of another batch.
        """
        before, self._published = self._published, batch
        whole = self._owes_step and not self._workers_ask  # workers have made a step that rank 0 has not
        changed, self._owes_step, self._moved = self._moved, False, False
        if before is None:
            return How.FIRST
        if whole:
            return How.WHOLE
        return How.AGAIN if changed or before != batch else None

    def interrupted(self) -> None:
        """The exchange has ended, or will: what is published next is the first version of another."""
        self._published, self._owes_step, self._moved = None, False, False
