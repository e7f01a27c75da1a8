"""The exceptions of the package: each names the thing at fault, and what to change where that is known.

All are `TierflowError`.
Those that stand for a mistake in an argument are `ValueError` too, those of a wait that ended are `TimeoutError`, so that code which catches the built-in ones goes on working.
"""

from __future__ import annotations

from typing import Any


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


class EngineError(TierflowError):
    """What the engine refuses or fails at. Numbers and names of the message are attributes, too."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self._fields = fields
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), str(self), self._fields)


def _rebuilt(kind: type[EngineError], message: str, fields: dict[str, Any]) -> EngineError:
    return kind(message, **fields)


class ArgumentError(EngineError, UsageError):
    """An argument has a value that is not allowed; `argument` is its name."""

    argument: str | None = None


class EncodingError(ArgumentError):
    """A text is no UTF-8, or holds half a character."""


class ContextFullError(EngineError, ValueError):
    """A prompt needs more positions (`needed`) than the context has (`available`)."""

    needed: int | None = None
    available: int | None = None


class ModelError(EngineError, ValueError):
    """A model's file is not what its format demands; `path` is the file."""

    path: str | None = None
    tensor: str | None = None


class UnsupportedModelError(ModelError):
    """A model is well-formed, but of a kind that tierflow, or the device, cannot run."""


class FileError(EngineError, OSError):
    """The operating system refused something about the file `path`."""

    path: str | None = None


class NetworkError(EngineError, ConnectionError):
    """A hub did not deliver `url`."""

    url: str | None = None


class DoesNotFitError(EngineError, MemoryError):
    """The model, as asked for, does not fit a budget or a limit of `device`: `needed` and `available` are bytes."""

    device: str | None = None
    needed: int | None = None
    available: int | None = None


class DeviceError(EngineError, RuntimeError):
    """An adapter or its driver failed; `adapter` is its name."""

    adapter: str | None = None


class NoGpuError(DeviceError):
    """There is no adapter, or not the one demanded."""


class DeviceLostError(DeviceError):
    """The adapter was taken away; the model must be opened again."""


class NotFiniteError(EngineError, ArithmeticError):
    """In training, a loss or the gradients of a step are not finite; nothing was changed."""


class BusyError(EngineError, RuntimeError):
    """All sequences of the engine are in use."""


class ClosedError(EngineError, RuntimeError):
    """The engine is closed, or its threads have ended."""


class ForkError(EngineError, RuntimeError):
    """This process is a fork of one in which the engine runs, and has none of its threads."""


class InterruptedError(EngineError, RuntimeError):
    """Something else ended what was under way."""
