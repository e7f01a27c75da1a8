"""The group that this process belongs to."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from typing import Any

from .rendezvous import Rendezvous

# How long a process waits for others, unless it says otherwise; evaluations have steps that take minutes.
DEFAULT_TIMEOUT_SECS = 1800.0


class Group(ABC):
    """Several processes, each with its rank, that exchange values.

    `local_rank` counts the processes on one machine.
    """

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int, timeout: float | None = None) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.timeout = DEFAULT_TIMEOUT_SECS if timeout is None else timeout
        self._turn = 0
        # Two threads of a process would take each other's turns.
        self._lock = threading.Lock()

    def exchange(self, operation: str, value: Any) -> list[Any]:
        """The values of all ranks, in order of ranks; every rank must call it, with the same `operation`."""
        with self._lock:
            turn, self._turn = self._turn, self._turn + 1
            return self._exchange(turn, operation, value)

    @abstractmethod
    def _exchange(self, turn: int, operation: str, value: Any) -> list[Any]: ...


class SoloGroup(Group):
    """A process on its own."""

    def __init__(self) -> None:
        super().__init__(0, 1, 0, 1)

    def _exchange(self, turn: int, operation: str, value: Any) -> list[Any]:
        return [value]


class LocalGroup(Group):
    """A rank that meets the others at a rendezvous of this process; threads stand for processes."""

    def __init__(self, rank: int, rendezvous: Rendezvous, timeout: float | None = None) -> None:
        super().__init__(rank, rendezvous.size, rank, rendezvous.size, timeout)
        self._rendezvous = rendezvous

    def _exchange(self, turn: int, operation: str, value: Any) -> list[Any]:
        return self._rendezvous.exchange(self.rank, turn, operation, value, self.timeout)


_current: Group | None = None


def current_group() -> Group:
    """The group that `tierflow launch` put this process in, or one of this process alone."""
    global _current
    if _current is None:
        if "TIERFLOW_WORKER_FD" in os.environ:
            from .channel import ChannelGroup

            _current = ChannelGroup.from_environment()
        else:
            _current = SoloGroup()
    return _current
