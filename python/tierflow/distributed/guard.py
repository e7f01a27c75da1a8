"""`python -m tierflow.distributed.guard PROGRAM…`: a program that ends with whoever started it.

The guard's stdin is a pipe from there; where it closes, the program is ended.
For programs that know nothing of such a line, as workers of ours do (`channel`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

END_SECS = 5.0


def main() -> int:
    """Runs the program to its end."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=end_with, args=(child,), daemon=True).start()
    return child.wait()


def end_with(child: subprocess.Popen[bytes]) -> None:
    """Waits until stdin is closed, then ends `child`."""
    # Not by `sys.stdin`, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    child.terminate()
    try:
        child.wait(END_SECS)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main())
