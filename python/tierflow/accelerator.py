"""`Accelerator`: a script for inference, evaluation or training, as written for Accelerate, over one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import trees
from .claims import choose_device, engine_options, precision_of
from .distributed import Group, collectives, current_group
from .errors import UsageError
from .prepared import DataLoaderConfiguration, PreparedLoader, prepare_loader
from .splitting import split
from .training import Training


class Accelerator(Training):
    """This process among those that `tierflow launch` started, and how data and results are shared between them.

    Everything works with one process, too, without a launcher.

    ```python
    accelerator = tierflow.Accelerator()
    engine = accelerator.open_engine("model.gguf")
    loader = accelerator.prepare(tierflow.DataLoader(texts, batch_size=8))
    for batch in loader:
        scores = [score(engine, text) for text in batch]
        results += accelerator.gather_for_metrics(scores)
    accelerator.print(len(results))
    ```

    - `cpu` computes on the host, whatever adapters there are.
    - `mixed_precision` is the precision of keys and values of engines that it opens: `no` (f32), `fp16`, or `bf16` (f32, too); None leaves it to the engine. Weights are computed with as they are stored.
    - `timeout` is how many seconds a process waits for the others at most.
    - `gradient_accumulation_steps` is how many batches make a step of an optimiser, where they are in `accumulate`.

    In training, it prepares `tierflow.LoraModel`, optimisers of `tierflow.optim` and schedules:

    ```python
    model, optim, data = accelerator.prepare(model, optim, data)
    for source, targets in data:
        loss = model(source, targets).loss
        accelerator.backward(loss)
        optim.step()
        optim.zero_grad()
    ```
    """

    def __init__(
        self,
        mixed_precision: str | None = None,
        cpu: bool = False,
        split_batches: bool = False,
        dataloader_config: DataLoaderConfiguration | None = None,
        timeout: float | None = None,
        group: Group | None = None,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        self.mixed_precision = precision_of(mixed_precision)
        self._group = current_group() if group is None else group
        if timeout is not None:
            self._group.timeout = timeout
        self._config = dataloader_config or DataLoaderConfiguration()
        if split_batches:
            self._config.split_batches = True
        self._cpu = cpu
        self._device: str | None = None
        # The loaders that are being read, the innermost last.
        self._active: list[PreparedLoader] = []
        self._begin_training(gradient_accumulation_steps)

    # Who this process is.

    @property
    def device(self) -> str:
        """What this process computes with: `cpu`, `gpu:N`, or `auto` where the engine is to choose."""
        if self._device is None:
            self._device = choose_device(self._cpu, self._group)
        return self._device

    @property
    def process_index(self) -> int:
        """The rank of this process among all."""
        return self._group.rank

    @property
    def local_process_index(self) -> int:
        """The rank of this process among those of this machine."""
        return self._group.local_rank

    @property
    def num_processes(self) -> int:
        """How many processes there are."""
        return self._group.size

    @property
    def num_local_processes(self) -> int:
        """How many of them are on this machine."""
        return self._group.local_size

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process of all."""
        return self._group.rank == 0

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first process of this machine."""
        return self._group.local_rank == 0

    @property
    def is_last_process(self) -> bool:
        """Whether this is the last process of all."""
        return self._group.rank == self._group.size - 1

    # Engines and data.

    def open_engine(self, model: str | os.PathLike[str], **options: Any) -> Any:
        """A `tierflow.Engine` on `device`; `options` are the engine's.

        Processes that compute on one GPU need a part of its memory each (`max_memory={"gpu:0": "4GiB"}`); two that would plan with all of it are refused.
        """
        from .engine import Engine  # type: ignore[import-not-found,unused-ignore]

        return Engine(model, **engine_options(self, options))

    def prepare(self, *objects: Any) -> Any:
        """Data loaders, ours or torch's, as loaders of this process's part; models in training, whose adapters become those of the main
        process, their optimisers and schedules; engines and all else as they are."""
        prepared = self._prepare_training(tuple(self.prepare_data_loader(each) if is_loader(each) else each for each in objects))
        return prepared[0] if len(prepared) == 1 else prepared

    def prepare_data_loader(self, loader: Any) -> PreparedLoader:
        """A loader of this process's part of `loader`."""
        prepared = prepare_loader(loader, self._group, self._config, self._active)
        if prepared not in self._loaders:
            self._loaders.append(prepared)
        return prepared

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """This process's part of a list, a tuple, an array, or a dictionary of them.

        `apply_padding` repeats the last item, so that all processes have as many.
        """
        yield split(inputs, self._group.rank, self._group.size, apply_padding)

    def _schedule_steps(self) -> int:
        return 1 if self._config.split_batches else self._group.size

    # Operations that all processes must call.

    def gather(self, tree: Any) -> Any:
        """The arrays of all processes, one after the other along the first dimension."""
        return collectives.gather(self._group, tree)

    def gather_object(self, values: list[Any]) -> list[Any]:
        """The lists of all processes as one."""
        return collectives.gather_object(self._group, values)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """What `gather` gives, without the samples that only fill the last round of the loader that is being read.

        Other values than arrays are gathered as lists of objects.
        Of a stream that every process reads for itself, the length is unknown, and nothing is dropped.
        """
        as_objects = use_gather_object or not trees.holds_only_arrays(input_data)
        data = (self.gather_object if as_objects else self.gather)(input_data)
        loader = self._active[-1] if self._active else None
        if loader is None or not loader.end_of_dataloader or loader.remainder <= 0:
            return data
        kept = slice(0, loader.remainder)
        return data[kept] if as_objects else trees.slice_arrays(data, kept)

    def reduce(self, tree: Any, reduction: str = "sum") -> Any:
        """`sum`, `mean` or `max` of the arrays of all processes; `none` leaves them."""
        return collectives.reduce(self._group, tree, reduction)

    def pad_across_processes(self, tree: Any, dim: int = 0, pad_index: Any = 0, pad_first: bool = False) -> Any:
        """Arrays padded along `dim` to the longest of all processes, so that they can be gathered."""
        return collectives.pad_across_processes(self._group, tree, dim, pad_index, pad_first)

    def broadcast(self, value: Any, from_process: int = 0) -> Any:
        """The value that one process has; it may be anything that can be pickled."""
        return collectives.broadcast_object(self._group, value, from_process)

    def wait_for_everyone(self) -> None:
        """Waits until every process is here."""
        collectives.barrier(self._group)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process goes through the block before the others."""
        yield from self._first(self.is_main_process)

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """The first process of each machine goes through the block before the others."""
        yield from self._first(self.is_local_main_process)

    def _first(self, is_first: bool) -> Iterator[None]:
        if not is_first:
            self.wait_for_everyone()
        yield
        if is_first:
            self.wait_for_everyone()

    # What one process does for all.

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints, in the first process of each machine alone."""
        if self.is_local_main_process:
            print(*args, **kwargs)

    def on_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does nothing in other processes than the main one."""
        return function if self.is_main_process else lambda *args, **kwargs: None


def is_loader(value: Any) -> bool:
    """Whether `value` gives batches of a data set."""
    return isinstance(value, PreparedLoader) or (hasattr(value, "dataset") and hasattr(value, "batch_sampler"))
