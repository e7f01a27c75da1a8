"""The launcher as a program."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from ..errors import TierflowError, WorkerDiedError
from .job import run
from .options import parse


def main(argv: list[str] | None = None) -> int:
    """Runs a job to its end; the exit status is 0, or that of the worker that failed first."""
    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, terminated)
    try:
        run(parse(sys.argv[1:] if argv is None else argv))
    except WorkerDiedError as error:
        print(f"tierflow launch: {error}", file=sys.stderr)
        code = error.exit_code or 1
        return code if code > 0 else 128 - code
    except TierflowError as error:
        print(f"tierflow launch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
