"""A part of some inputs for each process, without a data loader."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import trees
from .errors import UsageError


def split(inputs: Any, rank: int, n_processes: int, apply_padding: bool = False) -> Any:
    """Consecutive items for each process, the first ones getting one more where they do not divide evenly.

    `inputs` is a list, a tuple, an array, a data set with `select`, or a dictionary of these; all else goes to every process.
    `apply_padding` repeats the last item, so that all processes have as many.
    """
    if n_processes == 1 or not is_divisible(inputs):
        return inputs
    length = common_length(inputs)
    share, left = divmod(length, n_processes)
    start = rank * share + min(rank, left)
    stop = start + share + (1 if rank < left else 0)
    n_padding = share + (1 if left else 0) - (stop - start) if apply_padding and length else 0
    return take(inputs, [*range(start, stop), *[length - 1] * n_padding])


def is_divisible(inputs: Any) -> bool:
    return isinstance(inputs, dict | list | tuple) or trees.is_array(inputs) or hasattr(inputs, "select")


def common_length(inputs: Any) -> int:
    if not isinstance(inputs, dict):
        return len(inputs)
    lengths = {name: len(values) for name, values in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"the values of a dictionary that is split have different lengths: {lengths}")
    return next(iter(lengths.values()), 0)


def take(inputs: Any, indices: list[int]) -> Any:
    """The items at `indices`, in the type of `inputs`."""
    if isinstance(inputs, dict):
        return {name: take(values, indices) for name, values in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(inputs[i] for i in indices)
    if hasattr(inputs, "select"):
        return inputs.select(indices)
    if trees.is_array(inputs):
        return inputs[np.asarray(indices, dtype=np.int64)]
    return inputs
