"""What `Accelerator.prepare` makes of a data loader: one that gives each process its part, and knows when it ends.

`ShardedLoader` reads on every process the samples that are its own; `DispatchedLoader` reads on rank 0 alone and sends the others theirs.
Both know one batch ahead that they end, so that `gather_for_metrics` can drop what the last round repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from . import seeds, trees
from .data import batched, fetch, is_stream
from .distributed import Group
from .distributed.collectives import broadcast_object
from .errors import UsageError
from .sharding import BatchSamplerShard, IterableShard, check_divisible


@dataclass
class DataLoaderConfiguration:
    """How data loaders are shared out; the fields, and what they mean, are those of Accelerate.

    - `split_batches`: processes share each batch, instead of taking whole batches in turn.
    - `dispatch_batches`: rank 0 reads and sends; None: where the data set is a stream.
    - `even_batches`: samples from the start fill the last round.
    - `use_seedable_sampler`, `data_seed`: a shuffled order follows from the seed and the epoch.
    """

    split_batches: bool = False
    dispatch_batches: bool | None = None
    even_batches: bool = True
    use_seedable_sampler: bool = False
    data_seed: int | None = None


class PreparedLoader:
    """What both kinds have in common: the loader that they read, its epochs, and how far they are."""

    def __init__(self, loader: Any, group: Group, config: DataLoaderConfiguration, active: list[PreparedLoader]) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.drop_last: bool = loader.drop_last
        self.iteration = 0
        # True at the last batch, and the number of samples of the last round, -1 where that is unknown.
        self.end_of_dataloader = False
        self.remainder = -1
        self._group = group
        self._config = config
        self._active = active

    def _batches(self) -> Iterator[Any]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        self.end_of_dataloader, self.remainder = False, -1
        self._set_seed()
        self.set_epoch(self.iteration)
        self._active.append(self)
        try:
            yield from self._batches()
        finally:
            self._active.remove(self)
        self.iteration += 1

    def _set_seed(self) -> None:
        """A shuffled order is the same on all processes."""
        sampler = getattr(self.loader.batch_sampler, "sampler", None)
        generator = generator_of(self.dataset if sampler is None else sampler)
        if generator is None:
            return
        if self._config.use_seedable_sampler:
            if self._config.data_seed is None:
                self._config.data_seed = broadcast_object(self._group, seeds.initial_seed())
            seeds.reseed(generator, self._config.data_seed + self.iteration)
            return
        if self._group.size > 1:
            seeds.synchronise(self._group, generator)
        seeds.draw_base_seed(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Tells the data set and the samplers that follow epochs which one begins."""
        self.iteration = epoch
        batch_sampler = self.loader.batch_sampler
        for of in (self.dataset, batch_sampler, getattr(batch_sampler, "sampler", None)):
            if (follow := getattr(of, "set_epoch", None)) is not None:
                follow(epoch)


def generator_of(source: Any) -> Any:
    """The random generator of a sampler or a data set; a sampler of torch's that has none is given one."""
    generator = getattr(source, "generator", None)
    torch = trees.torch_if_imported()
    if generator is None and torch is not None and isinstance(source, torch.utils.data.RandomSampler):
        generator = source.generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return generator


class ShardedLoader(PreparedLoader):
    """Every process reads its own samples."""

    def __init__(self, loader: Any, group: Group, config: DataLoaderConfiguration, active: list[PreparedLoader]) -> None:
        super().__init__(loader, group, config, active)
        n, rank, split = group.size, group.rank, config.split_batches
        self._is_stream = is_stream(loader.dataset)
        if self._is_stream:
            shard = IterableShard(loader.dataset, loader.batch_size, loader.drop_last, n, rank, split)
            self._samples: Any = loader.dataset if n == 1 else shard
            self._part_size = shard.part_size
        else:
            even = config.even_batches
            shard_of = BatchSamplerShard(loader.batch_sampler, n, rank, split, even)
            self._indices: Any = loader.batch_sampler if n == 1 else shard_of

    @property
    def total_batch_size(self) -> int:
        """The samples of one step on all processes together."""
        batch_size = getattr(self.loader.batch_sampler, "batch_size", None) or self.loader.batch_size
        if batch_size is None:
            raise UsageError("batches of several sizes have no total_batch_size")
        return batch_size if self._config.split_batches else batch_size * self._group.size

    def __len__(self) -> int:
        if not self._is_stream:
            return len(self._indices)
        n_samples = len(self._samples)
        return n_samples // self._part_size if self.drop_last else ceil(n_samples / self._part_size)

    def _batches(self) -> Iterator[Any]:
        if not self.drop_last and not self._is_stream and sized_batches(self.loader):
            self.remainder = len(self.dataset) % self.total_batch_size
        batches = self._read()
        current = next(batches, None)
        while current is not None:
            following = next(batches, None)
            self.end_of_dataloader = following is None
            yield current[0]
            current = following

    def _read(self) -> Iterator[tuple[Any]]:
        """Each batch in a tuple of its own, for a batch may be None."""
        if self._is_stream:
            for samples in batched(self._samples, self._part_size, self.drop_last):
                yield (self.loader.collate_fn(samples),)
        else:
            for indices in self._indices:
                yield (self.loader.collate_fn(fetch(self.dataset, indices)),)


def sized_batches(loader: Any) -> bool:
    """Whether all batches have one size, which is known."""
    return getattr(loader.batch_sampler, "batch_size", None) is not None


class DispatchedLoader(PreparedLoader):
    """Rank 0 reads whole rounds, and each process gets its part of them."""

    def __len__(self) -> int:
        n_batches = len(self.loader)
        if self._config.split_batches:
            return n_batches
        return n_batches // self._group.size if self.drop_last else ceil(n_batches / self._group.size)

    def _batches(self) -> Iterator[Any]:
        rounds = self._rounds() if self._group.rank == 0 else None
        current = None if rounds is None else next(rounds, None)
        first: Any = None
        while not self.end_of_dataloader:
            following = None if rounds is None else next(rounds, None)
            batch, is_last = broadcast_object(self._group, (current, following is None))
            if batch is None:
                raise UsageError("a data loader whose batches are dispatched has not one whole round of them")
            first = trees.slice_arrays(batch, slice(0, self._group.size)) if first is None else first
            part = self._part(batch, first, is_last)
            self.end_of_dataloader = is_last
            yield part
            current = following

    def _rounds(self) -> Iterator[Any]:
        """What all processes get in one step."""
        n_batches = 1 if self._config.split_batches else self._group.size
        for batches in batched(self._read(), n_batches, self.drop_last and n_batches > 1):
            yield trees.concatenate(batches)

    def _read(self) -> Iterator[Any]:
        if is_stream(self.dataset):
            for samples in batched(self.dataset, self.loader.batch_size, self.drop_last):
                yield self.loader.collate_fn(samples)
        else:
            for indices in self.loader.batch_sampler:
                yield self.loader.collate_fn(fetch(self.dataset, indices))

    def _part(self, batch: Any, first: Any, is_last: bool) -> Any:
        n_samples = trees.batch_size(batch)
        size, left = divmod(n_samples, self._group.size)
        if left and not is_last:
            raise UsageError(f"a batch of {n_samples} samples, which is not the last, cannot be shared evenly")
        if left and not self.drop_last:
            batch = trees.concatenate([batch, first])
            size += 1
        if is_last:
            self.remainder = n_samples
        return trees.slice_arrays(batch, slice(self._group.rank * size, (self._group.rank + 1) * size))


def prepare_loader(
    loader: Any, group: Group, config: DataLoaderConfiguration, active: list[PreparedLoader]
) -> PreparedLoader:
    """A loader of `group.rank`'s part of `loader`, ours or torch's."""
    if isinstance(loader, PreparedLoader):
        return loader
    if getattr(loader, "batch_size", None) is None and getattr(loader, "batch_sampler", None) is None:
        raise UsageError("a data loader without batches (batch_size=None) cannot be shared out")
    if config.split_batches:
        size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)
        check_divisible(size, group.size)
    dispatch = is_stream(loader.dataset) if config.dispatch_batches is None else config.dispatch_batches
    return (DispatchedLoader if dispatch else ShardedLoader)(loader, group, config, active)
