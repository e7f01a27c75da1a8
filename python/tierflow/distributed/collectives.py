"""The operations of several processes, made of `Group.exchange`, as Accelerate has them."""

from __future__ import annotations

import functools
import operator
from typing import Any

from .. import trees
from ..errors import CollectiveError, UsageError
from .group import Group

REDUCTIONS = ("sum", "mean", "max", "none")


def barrier(group: Group) -> None:
    """Waits until every process is here."""
    group.exchange("wait_for_everyone", None)


def broadcast_object(group: Group, value: Any, source: int = 0) -> Any:
    """The value that rank `source` has."""
    return group.exchange(f"broadcast from {source}", value if group.rank == source else None)[source]


def gather_object(group: Group, values: list[Any]) -> list[Any]:
    """The lists of all processes as one, in order of ranks."""
    return [value for of in group.exchange("gather_object", values) for value in of]


def gather(group: Group, tree: Any) -> Any:
    """The arrays of all processes one after the other, in order of ranks; single numbers become vectors."""
    trees.map_arrays(lambda array: array, tree, strict=True)
    each = group.exchange("gather", trees.map_arrays(at_least_1d, tree))
    check_alike("gather", each)
    return trees.concatenate(each)


def at_least_1d(array: Any) -> Any:
    return array.reshape(1) if array.ndim == 0 else array


def check_alike(operation: str, each: list[Any]) -> None:
    """Refuses values whose shapes differ between ranks, and shows them."""
    shapes = [trees.shapes(tree) for tree in each]
    for rank, shape in enumerate(shapes):
        if shape != shapes[0]:
            advice = "; pad_across_processes makes them equal" if operation == "gather" else ""
            raise CollectiveError(f"{operation}: rank 0 has {shapes[0]}, rank {rank} has {shape}{advice}")


def reduce(group: Group, tree: Any, reduction: str = "sum") -> Any:
    """Sum, mean or maximum over the processes, in order of ranks; `none` leaves each process its own."""
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction {reduction!r} is none of {', '.join(REDUCTIONS)}")
    trees.map_arrays(lambda array: array, tree, strict=True)
    if reduction == "none":
        return tree
    each = group.exchange(f"reduce {reduction}", tree)
    check_alike("reduce", each)
    return trees.map_arrays(lambda *arrays: reduce_arrays(arrays, reduction), *each)


def reduce_arrays(arrays: tuple[Any, ...], reduction: str) -> Any:
    combine = trees.maximum if reduction == "max" else operator.add
    result = functools.reduce(combine, arrays)
    return result / len(arrays) if reduction == "mean" else result


def pad_across_processes(group: Group, tree: Any, dim: int = 0, pad_index: Any = 0, pad_first: bool = False) -> Any:
    """Arrays padded with `pad_index` along `dim` to the largest of all processes."""
    return trees.map_arrays(lambda array: pad_one(group, array, dim, pad_index, pad_first), tree, strict=True)


def pad_one(group: Group, array: Any, dim: int, pad_index: Any, pad_first: bool) -> Any:
    if not -array.ndim <= dim < array.ndim:
        return array
    dim %= array.ndim
    n_missing = max(group.exchange("pad_across_processes", array.shape[dim])) - array.shape[dim]
    if n_missing == 0:
        return array
    padding_shape = list(array.shape)
    padding_shape[dim] = n_missing
    padding = trees.full(array, padding_shape, pad_index)
    return trees.concatenate_arrays([padding, array] if pad_first else [array, padding], dim)
