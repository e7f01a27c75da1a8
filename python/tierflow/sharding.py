"""Which samples of a data set each of several processes gets.

The rules are Accelerate's, which scripts rely on: whole batches go round (`[b0, b2, …]` and `[b1, b3, …]` for two processes), or each batch is cut into pieces (`split_batches`).
Where the last round is not full, samples from the start fill it (`even_batches`), so that all processes take the same number of steps with batches of the same size; `gather_for_metrics` drops them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice
from math import ceil
from typing import Any

from .errors import UsageError


def check_divisible(size: int | None, n_processes: int) -> None:
    """Refuses `split_batches` of batches that processes cannot share evenly."""
    if size is None:
        raise UsageError("split_batches needs a batch sampler with a batch_size")
    if size % n_processes != 0:
        raise UsageError(f"split_batches: the batch size ({size}) is not a multiple of the {n_processes} processes")


class BatchSamplerShard:
    """The batches of `batch_sampler` that process `rank` of `n_processes` gets, as lists of indices."""

    def __init__(
        self,
        batch_sampler: Any,
        n_processes: int = 1,
        rank: int = 0,
        split_batches: bool = False,
        even_batches: bool = True,
    ) -> None:
        self.batch_sampler = batch_sampler
        self.n_processes = n_processes
        self.rank = rank
        self.split_batches = split_batches
        self.even_batches = even_batches
        self.batch_size: int | None = getattr(batch_sampler, "batch_size", None)
        self.drop_last: bool = getattr(batch_sampler, "drop_last", False)
        if split_batches:
            check_divisible(self.batch_size, n_processes)

    def __len__(self) -> int:
        n_batches = len(self.batch_sampler)
        if self.split_batches:
            return n_batches
        rounds, left = divmod(n_batches, self.n_processes)
        if left == 0 or self.drop_last:
            return rounds
        return rounds + (1 if self.even_batches or self.rank < left else 0)

    def __iter__(self) -> Iterator[list[int]]:
        if self.split_batches:
            return self._pieces()
        return self._batches_without_size() if self.batch_size is None else self._batches(self.batch_size)

    def _pieces(self) -> Iterator[list[int]]:
        """A piece of each batch."""
        whole = self.batch_size or 0
        size = whole // self.n_processes
        piece = slice(size * self.rank, size * (self.rank + 1))
        first: list[int] = []
        for batch in self.batch_sampler:
            first = first or list(batch)
            if len(batch) == whole:
                yield batch[piece]
            elif not self.drop_last and self.even_batches:
                yield list(islice(chain(batch, cycle(first)), whole))[piece]
            elif not self.drop_last and len(batch) > piece.start:
                yield batch[piece]

    def _batches(self, size: int) -> Iterator[list[int]]:
        """Whole batches in turn; a round is given out when it is known to be full."""
        start: list[int] = []
        round_: list[list[int]] = []
        for number, batch in enumerate(self.batch_sampler):
            if number < self.n_processes:
                start += batch
            round_.append(batch)
            if len(round_) > self.n_processes:
                raise UsageError(
                    f"batch {number - 1} has not {size} samples and is not the last one; "
                    "a batch sampler of batches of several sizes must have no batch_size"
                )
            if len(round_) == self.n_processes and len(batch) == size:
                yield round_[self.rank]
                round_ = []
        if not round_ or self.drop_last:
            return
        if self.even_batches:
            left = list(chain.from_iterable(round_))
            filled = list(islice(chain(left, cycle(start)), size * self.n_processes))
            yield filled[size * self.rank : size * (self.rank + 1)]
        elif self.rank < len(round_):
            yield round_[self.rank]

    def _batches_without_size(self) -> Iterator[list[int]]:
        """Whole batches of any sizes in turn; the first ones fill the last round."""
        start: list[list[int]] = []
        round_: list[list[int]] = []
        for number, batch in enumerate(self.batch_sampler):
            if number < self.n_processes:
                start.append(batch)
            round_.append(batch)
            if len(round_) == self.n_processes:
                yield round_[self.rank]
                round_ = []
        if not round_ or self.drop_last:
            return
        if self.even_batches:
            yield list(islice(chain(round_, cycle(start)), self.n_processes))[self.rank]
        elif self.rank < len(round_):
            yield round_[self.rank]


class IterableShard:
    """The samples of a stream that process `rank` of `n_processes` gets; every process reads the stream whole."""

    def __init__(
        self,
        dataset: Iterable[Any],
        batch_size: int,
        drop_last: bool = False,
        n_processes: int = 1,
        rank: int = 0,
        split_batches: bool = False,
    ) -> None:
        if split_batches:
            check_divisible(batch_size, n_processes)
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        # What all processes read in one step, and this one's part of it.
        self.round_size = batch_size if split_batches else batch_size * n_processes
        self.part_size = batch_size // n_processes if split_batches else batch_size
        self.n_processes = n_processes

    def __len__(self) -> int:
        rounds = len(self.dataset) / (self.batch_size * self.n_processes)  # type: ignore[arg-type]
        return (int(rounds) if self.drop_last else ceil(rounds)) * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        part = slice(self.rank * self.part_size, (self.rank + 1) * self.part_size)
        samples = iter(self.dataset)
        first: list[Any] = []
        while round_ := list(islice(samples, self.round_size)):
            first = first or round_
            if len(round_) < self.round_size:
                if self.drop_last:
                    return
                round_ = list(islice(chain(round_, cycle(first)), self.round_size))
            yield from round_[part]
