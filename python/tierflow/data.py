"""Data loaders over sequences and streams, without torch.

A `DataLoader` has the attributes of torch's that sharding reads, so that both are prepared by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np

from . import trees
from .errors import UsageError


class SequentialSampler:
    """The indices of a data set in order."""

    def __init__(self, dataset: Sized) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.dataset)))


class RandomSampler:
    """The indices of a data set in an order that its generator draws anew each time."""

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.dataset = dataset
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator.permutation(len(self.dataset)).tolist())


class BatchSampler:
    """The indices of `sampler`, `batch_size` at a time."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        whole, left = divmod(len(self.sampler), self.batch_size)
        return whole + (1 if left and not self.drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        return batched(self.sampler, self.batch_size, self.drop_last)


def batched(items: Iterable[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    """`size` items at a time; the last ones may be fewer, unless `drop_last`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        if len(batch) == size or not drop_last:
            yield batch


def is_stream(dataset: Any) -> bool:
    """Whether samples can only be read one after the other."""
    torch = trees.torch_if_imported()
    if torch is not None and isinstance(dataset, torch.utils.data.IterableDataset):
        return True
    return not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))


class DataLoader:
    """Batches of a data set: a sequence (`__getitem__` and `__len__`), or anything that can be iterated.

    Numbers and NumPy arrays of a batch become one array, dictionaries and tuples are put together field by field, and text becomes a list; `collate_fn` does it differently.
    `sampler` gives indices, `batch_sampler` lists of them; a shuffled order depends on `seed` alone.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size} is not at least 1")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise UsageError("batch_sampler excludes batch_size, shuffle, sampler and drop_last")
        if is_stream(dataset) and (shuffle or sampler is not None or batch_sampler is not None):
            raise UsageError("a stream has no indices: shuffle, sampler and batch_sampler need a sequence")
        if sampler is not None and shuffle:
            raise UsageError("sampler excludes shuffle")
        self.dataset = dataset
        self.batch_size = batch_size if batch_sampler is None else None
        self.drop_last = drop_last
        self.collate_fn = trees.collate if collate_fn is None else collate_fn
        self.sampler: Any = None
        self.batch_sampler: Any = batch_sampler
        if batch_sampler is None and not is_stream(dataset):
            self.sampler = sampler
            if sampler is None:
                self.sampler = RandomSampler(dataset, seed) if shuffle else SequentialSampler(dataset)
            self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)

    def __len__(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)
        whole, left = divmod(len(self.dataset), self.batch_size or 1)
        return whole + (1 if left and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Any]:
        if self.batch_sampler is None:
            for samples in batched(self.dataset, self.batch_size or 1, self.drop_last):
                yield self.collate_fn(samples)
        else:
            for indices in self.batch_sampler:
                yield self.collate_fn(fetch(self.dataset, indices))


def fetch(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """The samples at `indices`, at once where the data set can do that."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(list(indices))
    return [dataset[i] for i in indices]
