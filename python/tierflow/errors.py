"""The exceptions of the package: each names the thing at fault, and what to change where that is known.

All are `TierflowError`.
Those that stand for a mistake in an argument are `ValueError` too, those of a wait that ended are `TimeoutError`, so that code which catches the built-in ones goes on working.
"""

from __future__ import annotations


class TierflowError(Exception):
    """What all exceptions of this package have in common."""


class UsageError(TierflowError, ValueError):
    """An argument, an option or an order of calls that cannot work."""


class MissingPackageError(TierflowError, ImportError):
    """A package that is needed here and is not installed; the message says how to install it."""


class DistributedError(TierflowError, RuntimeError):
    """Something that concerns several processes failed."""


class DeadlineError(DistributedError, TimeoutError):
    """A wait for other processes, or for a cluster, took longer than its deadline."""


class CollectiveError(DistributedError):
    """Processes called different collective operations, or the same one with values that do not fit together."""


class WorkerDiedError(DistributedError):
    """A worker ended before its work was done.

    `rank` is the worker's, `exit_code` what it ended with (negative: the signal, None: unknown), and `log` its last lines.
    """

    def __init__(self, message: str, rank: int = 0, exit_code: int | None = None, log: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.exit_code = exit_code
        self.log = log

    def __reduce__(self):
        return type(self), (str(self), self.rank, self.exit_code, self.log)


class BudgetInUseError(DistributedError):
    """Two processes would each plan with the same memory of one device."""


class ClusterError(DistributedError):
    """A Ray cluster that cannot be reached, or that has no room for what was asked."""


class ObjectStoreFullError(DistributedError):
    """Ray's object store has no room for the results; smaller batches, or a larger store, help."""
