"""A model over the rows of a Ray data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from ..claims import budgets_of, claim
from ..errors import MissingPackageError, TierflowError, UsageError
from .checkpoint import Checkpoint, key_of
from .cluster import import_ray

Columns = dict[str, Any]
# What can be asked of an engine for one row.
TASKS = ("generate", "chat", "embed", "score")


class BatchPredictor:
    """What each worker of `Dataset.map_batches` has: one engine, which answers the rows of its batches, `n_seqs` at a time.

    ```python
    answers = dataset.map_batches(
        tierflow.ray.BatchPredictor,
        fn_constructor_kwargs={"model": "model.gguf", "options": {"max_tokens": 64}, "checkpoint": "answers/"},
        batch_size=32, concurrency=4,
    )
    ```

    `tierflow.ray.predict` writes that call.

    - `task` is a method of the engine: `generate` and `score` of a text, `chat` of messages, `embed` of a text; `options` are its arguments.
    - `input_column` holds what is asked, `output_column` gets what is answered.
    - `engine` are the arguments of `tierflow.Engine`. Where `device` is not among them, it is the GPU that Ray lent to the worker (`num_gpus=1`), or `cpu`. Workers that share a GPU need a part of its memory each (`max_memory`).
    - `checkpoint` is a folder in which answers are kept as they come: a job that starts again with it computes only what is missing. Rows are told apart by `key_column`, or by what they ask.
    - `errors="keep"` puts what the engine refuses (a prompt too long for the context, say) into the column `error`, instead of ending the job.
    - `open_engine` opens the engine in some other way.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        task: str = "generate",
        input_column: str = "prompt",
        output_column: str = "answer",
        options: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        key_column: str | None = None,
        errors: str = "raise",
        open_engine: Callable[[], Any] | None = None,
    ) -> None:
        if task not in TASKS:
            raise UsageError(f"task {task!r} is none of {', '.join(TASKS)}")
        if errors not in ("raise", "keep"):
            raise UsageError(f"errors {errors!r} is neither raise nor keep")
        if (model is None) == (open_engine is None):
            raise UsageError("either model or open_engine is needed")
        self._task = task
        self._columns = (input_column, output_column, key_column)
        self._options = dict(options or {})
        self._keeps_errors = errors == "keep"
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint)
        self._engine = open_engine() if open_engine is not None else open_here(model, dict(engine or {}))
        self._threads = ThreadPoolExecutor(getattr(self._engine, "n_seqs", 1))

    def __call__(self, batch: Columns) -> Columns:
        """The batch with its answers."""
        input_column, output_column, key_column = self._columns
        for column in (input_column, key_column):
            if column is not None and column not in batch:
                raise UsageError(f"the data set has no column {column!r}; it has {', '.join(sorted(batch))}")
        asked = list(batch[input_column])
        keys = asked if key_column is None else list(batch[key_column])
        results = list(self._threads.map(self._answer, keys, asked))
        answered = {**batch, output_column: column_of([answer for answer, _ in results])}
        if self._keeps_errors:
            answered["error"] = np.array([error for _, error in results], dtype=object)
        return answered

    def _answer(self, key: Any, asked: Any) -> tuple[Any, str | None]:
        """The answer for one row, and why there is none."""
        name = key_of([self._task, self._options, plain(key)]) if self._checkpoint is not None else ""
        if self._checkpoint is not None and name in self._checkpoint:
            return self._checkpoint[name], None
        try:
            answer = plain(getattr(self._engine, self._task)(plain(asked), **self._options))
        except TierflowError as error:
            if not self._keeps_errors:
                raise
            return None, f"{type(error).__name__}: {error}"
        if self._checkpoint is not None:
            self._checkpoint[name] = answer
        return answer, None


def open_here(model: Any, options: dict[str, Any]) -> Any:
    """An engine on what Ray lent to this worker."""
    from ..engine import Engine  # type: ignore[import-not-found,unused-ignore]

    if "device" not in options:
        lent = import_ray().get_gpu_ids()
        options["device"] = f"gpu:{lent[0]}" if lent else "cpu"
    device = str(options["device"])
    if device.startswith("gpu:"):
        claim(device, shared=device in budgets_of(options.get("max_memory")))
    return Engine(model, **options)


def plain(value: Any) -> Any:
    """Values of NumPy as Python's, for engines and for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def column_of(answers: list[Any]) -> Any:
    """Answers as a column: text and numbers as they are, vectors of one length as a matrix."""
    if answers and all(isinstance(answer, list) and answer and isinstance(answer[0], float) for answer in answers):
        if len({len(answer) for answer in answers}) == 1:
            return np.array(answers, dtype=np.float32)
    column = np.empty(len(answers), dtype=object)
    for i, answer in enumerate(answers):
        column[i] = answer
    return column


def predict(
    dataset: Any,
    model: str | os.PathLike[str] | None = None,
    *,
    workers: int = 1,
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_restarts: int = 3,
    **predictor: Any,
) -> Any:
    """`dataset` with the answers of a model, over `workers` actors with an engine each; `predictor` are options of `BatchPredictor`.

    A worker that dies is started again, up to `max_restarts` times, and its batches are given out anew: every row is answered once.
    Batches are read no faster than they are answered, two for each worker ahead.
    A data set of Ray's is lazy: what reads it is what fails; `with tierflow.ray.own_errors("answering"):` around that turns Ray's exceptions into those of `tierflow.errors`.
    """
    import_ray()
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingPackageError(f'data sets of Ray need more of it: pip install "ray[data]" ({error})') from error
    # What the engine refuses is raised as it is, not as text in an exception of Ray's.
    dataset.context.raise_original_map_exception = True
    return dataset.map_batches(
        BatchPredictor,
        fn_constructor_kwargs={"model": model, **predictor},
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        ray_remote_args_fn=partial(dict, max_restarts=max_restarts, max_task_retries=max_restarts),
    )
