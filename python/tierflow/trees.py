"""Nested lists, tuples and dictionaries with arrays as their leaves, as data loaders give them.

Arrays are NumPy's; torch's tensors are arrays too, where the program has imported torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import UsageError


def torch_if_imported() -> Any:
    """The torch module if this program uses it; it is never imported from here."""
    return sys.modules.get("torch")


def is_array(value: Any) -> bool:
    """Whether `value` is a leaf that operations on arrays apply to."""
    torch = torch_if_imported()
    return isinstance(value, np.ndarray | np.generic) or (torch is not None and isinstance(value, torch.Tensor))


def map_arrays(function: Callable[..., Any], *trees: Any, strict: bool = False) -> Any:
    """`function` of the arrays at the same place in all `trees`, in the form of the first.

    Other leaves are those of the first, or are refused if `strict`.
    """
    first = trees[0]
    if is_array(first):
        return function(*trees)
    if isinstance(first, Mapping):
        kind: Any = type(first)
        return kind({key: map_arrays(function, *(t[key] for t in trees), strict=strict) for key in first})
    if isinstance(first, list | tuple):
        return like(first, [map_arrays(function, *items, strict=strict) for items in zip(*trees, strict=True)])
    if strict:
        raise UsageError(f"expected an array, or lists, tuples and dictionaries of arrays, not {type(first).__name__}")
    return first


def like(sequence: Sequence[Any], items: list[Any]) -> Any:
    """`items` as the type of `sequence`: a list, a tuple or a named tuple."""
    kind: Any = type(sequence)
    return kind(*items) if hasattr(sequence, "_fields") else kind(items)


def holds_only_arrays(tree: Any) -> bool:
    """Whether every leaf is an array."""
    if isinstance(tree, Mapping):
        return all(holds_only_arrays(item) for item in tree.values())
    if isinstance(tree, list | tuple):
        return all(holds_only_arrays(item) for item in tree)
    return is_array(tree)


def batch_size(tree: Any) -> int:
    """The first dimension of the first array."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        if not tree:
            raise UsageError("an empty batch has no size")
        return batch_size(tree[0])
    if not is_array(tree):
        raise UsageError(f"a batch of {type(tree).__name__} has no size; batches are arrays, or hold arrays")
    return tree.shape[0]


def concatenate_arrays(arrays: Sequence[Any], dim: int = 0) -> Any:
    """Arrays one after the other along `dim`; NumPy's become one of NumPy, torch's one of torch."""
    if isinstance(arrays[0], np.ndarray | np.generic):
        return np.concatenate(arrays, axis=dim)
    return torch_if_imported().cat(list(arrays), dim=dim)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two arrays, value by value."""
    return np.maximum(a, b) if isinstance(a, np.ndarray | np.generic) else torch_if_imported().maximum(a, b)


def full(like_array: Any, shape: Sequence[int], value: Any) -> Any:
    """An array of `shape` and of the type of `like_array`, filled with `value`, a number or one row."""
    if isinstance(like_array, np.ndarray | np.generic):
        return np.zeros(shape, like_array.dtype) + np.asarray(value, like_array.dtype)
    return like_array.new_zeros(tuple(shape)) + value


def concatenate(trees: Sequence[Any]) -> Any:
    """Batches of one form, one after the other."""
    return map_arrays(lambda *arrays: concatenate_arrays(arrays), *trees)


def slice_arrays(tree: Any, of: slice) -> Any:
    """The same rows of each array."""
    return map_arrays(lambda array: array[of], tree)


def shapes(tree: Any) -> Any:
    """The same form with shapes in place of arrays, to be compared and shown."""
    return map_arrays(lambda array: Shape(array), tree)


class Shape:
    """The shape and type of one array, as text; equal where values can be put together."""

    def __init__(self, array: Any) -> None:
        self.text = f"{array.dtype}{list(array.shape)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


def collate(samples: Sequence[Any]) -> Any:
    """One batch from samples: numbers and arrays are stacked, dictionaries and sequences by field, text is listed."""
    first = samples[0]
    if isinstance(first, str | bytes):
        return list(samples)
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, list | tuple):
        if any(len(sample) != len(first) for sample in samples):
            raise UsageError("samples of one batch have different lengths; pass a collate_fn that pads them")
        return like(first, [collate(items) for items in zip(*samples, strict=True)])
    if is_array(first) and not isinstance(first, np.generic):
        return stack(samples)
    if isinstance(first, bool | int | float | np.generic):
        return np.asarray(samples)
    return list(samples)


def stack(arrays: Sequence[Any]) -> Any:
    """Arrays of one shape along a new first dimension."""
    if any(array.shape != arrays[0].shape for array in arrays):
        raise UsageError("arrays of one batch have different shapes; pass a collate_fn that pads them")
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else torch_if_imported().stack(list(arrays))
