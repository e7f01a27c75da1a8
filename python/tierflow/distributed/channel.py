"""The line between a worker and whoever started it, over which the worker reaches its group.

The worker sends the turn, the operation, its value (pickled, so that only ranks unpickle it) and its deadline, and gets the values of all ranks or an exception.
The line is a lifeline, too: where the other end is gone, the worker ends, so that no worker outlives its launcher.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..errors import DeadlineError, DistributedError
from .group import Group

# Environment of a worker: the line's file descriptor, and who it is.
FD = "TIERFLOW_WORKER_FD"
IDENTITY = ("TIERFLOW_RANK", "TIERFLOW_WORLD_SIZE", "TIERFLOW_LOCAL_RANK", "TIERFLOW_LOCAL_WORLD_SIZE")
# The group has its own deadline, which says for whom it waits; its answer may take a moment longer.
GRACE_SECS = 30.0

# Rank, turn, operation, value, seconds: the values of all ranks.
Exchange = Callable[[int, int, str, bytes, float], list[bytes]]


class ChannelGroup(Group):
    """The group of a worker, reached over its line."""

    def __init__(self, connection: Connection, rank: int, size: int, local_rank: int, local_size: int) -> None:
        super().__init__(rank, size, local_rank, local_size)
        self._connection = connection
        self._answers: queue.Queue[list[bytes] | DistributedError] = queue.Queue()
        threading.Thread(target=self._receive, name="tierflow-line", daemon=True).start()

    @classmethod
    def from_environment(cls) -> ChannelGroup:
        """The group of this process; processes that it starts do not inherit it."""
        fd = int(os.environ.pop(FD))
        os.set_inheritable(fd, False)
        return cls(Connection(fd), *(int(os.environ[name]) for name in IDENTITY))

    def _receive(self) -> None:
        while True:
            try:
                answer = self._connection.recv_bytes()
            except (EOFError, OSError):
                os.write(2, b"tierflow: the launcher of this worker is gone; the worker ends\n")
                os._exit(1)
            try:
                self._answers.put(pickle.loads(answer))
            except Exception as error:
                self._answers.put(DistributedError(f"rank {self.rank}: the launcher's answer cannot be read: {error}"))

    def _exchange(self, turn: int, operation: str, value: Any) -> list[Any]:
        self._connection.send_bytes(pickle.dumps((turn, operation, pickle.dumps(value), self.timeout)))
        try:
            answer = self._answers.get(timeout=self.timeout + GRACE_SECS)
        except queue.Empty:
            raise DeadlineError(f"rank {self.rank}: no answer from the launcher in {operation}") from None
        if isinstance(answer, DistributedError):
            raise answer
        return [pickle.loads(each) for each in answer]


def serve(connection: Connection, rank: int, exchange: Exchange) -> None:
    """Answers a worker's requests until its end of the line is closed."""
    while True:
        try:
            turn, operation, value, timeout = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer: Any = exchange(rank, turn, operation, value, timeout)
        except DistributedError as error:
            answer = error
        try:
            connection.send_bytes(pickle.dumps(answer))
        except OSError:
            return


def alone(rank: int, turn: int, operation: str, value: bytes, timeout: float) -> list[bytes]:
    """The exchange of a single worker."""
    return [value]
