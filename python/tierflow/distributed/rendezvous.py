"""Where the ranks of a group meet: each brings a value to a turn and takes those of all away.

A rendezvous lives in one process and is called from many threads: in a Ray actor for the workers of a job, in a test for threads that stand for processes.
No wait is without end: it ends with the values, with its deadline, or because a rank has left that is still expected.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from ..errors import CollectiveError, DeadlineError, DistributedError


@dataclass
class Turn:
    """One exchange: its operation as the first rank names it, the values so far, and how many have taken them."""

    operation: str
    values: dict[int, Any] = field(default_factory=dict)
    n_taken: int = 0
    error: DistributedError | None = None


class Rendezvous:
    """A meeting place of `size` ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._turns: dict[int, Turn] = {}
        self._left: dict[int, str] = {}
        self._changed = threading.Condition()

    def exchange(self, rank: int, turn: int, operation: str, value: Any, timeout: float) -> list[Any]:
        """The values of all ranks at exchange number `turn`, in order of ranks."""
        deadline = time.monotonic() + timeout
        with self._changed:
            meeting = self._turns.setdefault(turn, Turn(operation))
            if meeting.operation != operation and meeting.error is None:
                others = sorted(meeting.values)
                meeting.error = CollectiveError(
                    f"rank {rank} calls {operation} where rank {others[0]} calls {meeting.operation}; "
                    "all processes must call the same operations in the same order"
                )
            meeting.values[rank] = value
            self._changed.notify_all()
            while len(meeting.values) < self.size and meeting.error is None:
                self._wait(meeting, rank, deadline, timeout)
            if meeting.error is not None:
                self._changed.notify_all()
                raise meeting.error
            return self._take(turn, meeting)

    def _wait(self, meeting: Turn, rank: int, deadline: float, timeout: float) -> None:
        missing = [r for r in range(self.size) if r not in meeting.values]
        for gone in missing:
            if gone in self._left:
                meeting.error = CollectiveError(
                    f"rank {rank} waits in {meeting.operation} for rank {gone}, which {self._left[gone]}"
                )
                return
        left = deadline - time.monotonic()
        if left <= 0:
            meeting.error = DeadlineError(
                f"rank {rank} waited {timeout:g} s in {meeting.operation} for rank{'s' if len(missing) > 1 else ''} "
                + ", ".join(map(str, missing))
            )
            return
        self._changed.wait(left)

    def _take(self, turn: int, meeting: Turn) -> list[Any]:
        meeting.n_taken += 1
        if meeting.n_taken == self.size:
            del self._turns[turn]
        return [meeting.values[r] for r in range(self.size)]

    def leave(self, rank: int, how: str) -> None:
        """Nobody shall wait for `rank` any more, which `how` ("has ended", "was killed by signal 9")."""
        with self._changed:
            self._left[rank] = how
            self._changed.notify_all()
