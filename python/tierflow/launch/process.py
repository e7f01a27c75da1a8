"""One worker's process: started with its line and its environment, watched to its end, and ended with whoever watches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO

from ..distributed.channel import FD, Exchange, serve
from ..errors import UsageError
from .options import Job

# What is kept of a worker's output, to be shown if it dies.
TAIL_LINES = 40
END_SECS = 5.0

# A stream's name, and a line of it.
OnLine = Callable[[str, str], None]


class WorkerProcess:
    """The process of one rank. With `on_line`, its output is read and passed on line by line; without, it is the caller's own."""

    def __init__(self, job: Job, rank: int, environment: dict[str, str], exchange: Exchange, on_line: OnLine | None) -> None:
        if sys.platform == "win32":
            raise UsageError("tierflow launch needs Linux or macOS; on Windows, run the script with python")
        self.rank = rank
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        ours, theirs = socket.socketpair()
        output = None if on_line is None else subprocess.PIPE
        kind = "module" if job.is_module else "script"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tierflow.launch.worker", kind, job.target, *job.arguments],
            env={**os.environ, "PYTHONPATH": python_path(), **environment, FD: str(theirs.fileno())},
            stdin=None if on_line is None else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        line = Connection(ours.detach())
        threading.Thread(target=serve, args=(line, rank, exchange), daemon=True).start()
        self._readers = [self._reader("stdout", self._process.stdout), self._reader("stderr", self._process.stderr)]

    def _reader(self, name: str, stream: IO[bytes] | None) -> threading.Thread:
        thread = threading.Thread(target=self._read, args=(name, stream), daemon=True)
        thread.start()
        return thread

    def _read(self, name: str, stream: IO[bytes] | None) -> None:
        for raw in stream or ():
            line = raw.decode(errors="replace")
            self._tail.append(line)
            if self._on_line is not None:
                self._on_line(name, line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        """The exit status: negative for a signal. All output has been read then, but for that of processes which it left behind."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(END_SECS)
        return code

    @property
    def log(self) -> str:
        """The last lines of its output."""
        return "".join(self._tail)

    def stop(self) -> None:
        """Ends it, by force if it takes longer than some seconds."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def python_path() -> str:
    """Where this process finds its modules, for one that it starts."""
    return os.pathsep.join(entry for entry in sys.path if entry)


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
