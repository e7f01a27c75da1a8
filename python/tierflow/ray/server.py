"""The program's own server, as a process of a replica."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from ..errors import DeadlineError, UsageError, WorkerDiedError

ADDRESS = re.compile(r"is served on (http://\S+)")
TAIL_LINES = 40


class Server:
    """`tierflow serve MODEL` on a free port of this machine; it ends with this process."""

    def __init__(self, program: str, model: str, arguments: Sequence[str], timeout: float) -> None:
        path = shutil.which(program)
        if path is None:
            raise UsageError(f"the program {program!r} is not on this machine; name the tierflow program with `program`")
        command = [path, "serve", model, "--port", "0", *arguments]
        guard = [sys.executable, "-m", "tierflow.distributed.guard", *command]
        self._process = subprocess.Popen(guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._address: str | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self._wait(timeout)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace")
            self._tail.append(line)
            if found := ADDRESS.search(line):
                with self._changed:
                    self._address = found[1]
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _wait(self, timeout: float) -> str:
        """The address, as soon as the model is loaded."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._address is None:
                self.check()
                left = deadline - time.monotonic()
                if left <= 0:
                    self.stop()
                    raise DeadlineError(f"the server was not ready within {timeout:g} s; its last lines:\n{self.log}")
                self._changed.wait(min(left, 1.0))
            return self._address

    @property
    def log(self) -> str:
        """The last lines that it printed."""
        return "".join(self._tail)

    def check(self) -> None:
        """Raises if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise WorkerDiedError(f"the server ended with exit status {code}; its last lines:\n{self.log}", exit_code=code, log=self.log)

    def stop(self) -> None:
        """Ends it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
