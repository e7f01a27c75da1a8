"""What an `Accelerator` does in training: when gradients are added up, averaged over the processes and become a step, and what is saved of it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .distributed import Group, collectives
from .errors import ArgumentError, CollectiveError, ModelError, UsageError
from .prepared import PreparedLoader

STATE_NAME = "accelerator.json"
SCHEMA = "tierflow.accelerator/1"


class PreparedOptimizer:
    """An optimiser that takes a step only where gradients are complete."""

    def __init__(self, optimizer: Any, training: Training) -> None:
        self.optimizer = optimizer
        self._training = training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optimizer.lr = lr

    def step(self) -> None:
        """A step, if `sync_gradients`."""
        if self._training.sync_gradients:
            self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begins a new sum of gradients, if `sync_gradients`."""
        if self._training.sync_gradients:
            self.optimizer.zero_grad()


class PreparedScheduler:
    """A schedule that goes on only where gradients are complete, and then once for each process, as Accelerate's does.

    So it may be made for the steps that one process alone would take. With `split_batches`, it goes on once.
    """

    def __init__(self, scheduler: Any, training: Training) -> None:
        self.scheduler = scheduler
        self._training = training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["scheduler"], name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Goes on, if `sync_gradients`."""
        if self._training.sync_gradients:
            for _ in range(self._training._schedule_steps()):
                self.scheduler.step(*args, **kwargs)


class Training:
    """The part of an `Accelerator` that trains."""

    _group: Group
    _active: list[PreparedLoader]

    def _begin_training(self, gradient_accumulation_steps: int) -> None:
        if isinstance(gradient_accumulation_steps, bool) or not isinstance(gradient_accumulation_steps, int) or gradient_accumulation_steps < 1:
            reason = f"gradient_accumulation_steps: must be a whole number of at least 1, not {gradient_accumulation_steps!r}"
            raise ArgumentError(reason, argument="gradient_accumulation_steps")
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.sync_gradients = True
        self.step = 0
        self._averages = True
        self._models: list[Any] = []
        self._optimizers: list[PreparedOptimizer] = []
        self._schedulers: list[PreparedScheduler] = []
        self._loaders: list[PreparedLoader] = []

    def _schedule_steps(self) -> int:
        raise NotImplementedError

    # What is prepared.

    def _prepare_training(self, objects: tuple[Any, ...]) -> tuple[Any, ...]:
        """Models, optimisers and schedules of `objects`, prepared; all else as it is."""
        if not any(hasattr(each, "step") or hasattr(each, "set_gradients") for each in objects):
            return objects
        from .lora_model import LoraModel
        from .optim import Optimizer

        for model in objects:
            if isinstance(model, LoraModel):
                self._prepare_model(model)
        prepared = [self._prepare_optimizer(each) if isinstance(each, Optimizer) else each for each in objects]
        is_schedule = [hasattr(each, "step") and hasattr(each, "get_last_lr") for each in prepared]
        return tuple(self._prepare_scheduler(each) if is_one else each for each, is_one in zip(prepared, is_schedule, strict=True))

    def _prepare_model(self, model: Any) -> None:
        if model in self._models:
            return
        if self._group.size > 1:
            shapes = collectives.gather_object(self._group, [[(name, each.shape) for name, each in model.named_parameters()]])
            if any(other != shapes[0] for other in shapes):
                raise CollectiveError("the processes have adapters of different layers or ranks; open the same model in all of them")
            model.set_values(collectives.broadcast_object(self._group, model.values()))
            model.rank = self._group.rank
        self._models.append(model)

    def _prepare_optimizer(self, optimizer: Any) -> PreparedOptimizer:
        if optimizer.model not in self._models:
            raise UsageError(f"the optimiser is of another model ({optimizer.model!r}); prepare the one whose parameters it has, too")
        for prepared in self._optimizers:
            if prepared.optimizer is optimizer:
                return prepared
        self._optimizers.append(PreparedOptimizer(optimizer, self))
        return self._optimizers[-1]

    def _prepare_scheduler(self, scheduler: Any) -> PreparedScheduler:
        if not isinstance(scheduler, PreparedScheduler):
            scheduler = PreparedScheduler(scheduler, self)
        if scheduler not in self._schedulers:
            self._schedulers.append(scheduler)
        return scheduler

    def unwrap_model(self, model: Any, keep_fp32_wrapper: bool = True) -> Any:
        """The model as it was before `prepare`, which leaves it as it is."""
        return model

    # Gradients.

    @contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """Gradients of `gradient_accumulation_steps` such blocks make a step; the last batch of a loader ends one, too."""
        if self._active and self._active[-1].end_of_dataloader:
            self.step = 0
            self.sync_gradients = True
        else:
            self.step += 1
            self.sync_gradients = self.step % self.gradient_accumulation_steps == 0
        with self.no_sync(*models) if not self.sync_gradients else _nothing():
            yield

    @contextmanager
    def no_sync(self, *models: Any) -> Iterator[None]:
        """Gradients that are added here are averaged over the processes with the next ones behind it."""
        before, self._averages = self._averages, False
        try:
            yield
        finally:
            self._averages = before

    @contextmanager
    def autocast(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Changes nothing: weights are computed with as they are stored, and all else in f32."""
        yield

    def backward(self, loss: Any, **kwargs: Any) -> None:
        """Adds the gradients of the loss, by `gradient_accumulation_steps`, and averages them over the processes where they are complete.

        A loss that is not finite raises `NotFiniteError` and adds nothing.
        """
        from .losses import Loss

        if not isinstance(loss, Loss):
            raise UsageError(f"backward: must be the loss of a tierflow.LoraModel, not {type(loss).__name__}")
        if self._group.size > 1 and loss.model not in self._models:
            raise UsageError("backward: the loss is of a model that was not prepared; its gradients would differ between processes")
        loss.backward(1.0 / self.gradient_accumulation_steps)
        if self._averages and self._group.size > 1:
            loss.model.set_gradients(collectives.reduce(self._group, loss.model.gradients(), "mean"))

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2.0) -> float:
        """Shortens the gradients of a model to `max_norm` where they are longer; gives the length that they had together."""
        from .optim import model_of, one_group

        if norm_type != 2:
            raise ArgumentError(f"norm_type: {norm_type!r} is not computed here; there is 2", argument="norm_type")
        if not float(max_norm) >= 0:
            raise ArgumentError(f"max_norm: must be a number of at least 0, not {max_norm!r}", argument="max_norm")
        return model_of(one_group(parameters)[0])._native.clip(float(max_norm))

    # What is saved.

    def save_state(self, output_dir: str | os.PathLike[str]) -> str:
        """Writes what training goes on from into a folder, in place of what was there: adapters, optimisers, schedules, random generators.

        Call it behind a step: gradients that were added since are not saved. All processes must call it; the main one writes.
        """
        generators = collectives.gather_object(self._group, [random_states()])
        folder = Path(output_dir)
        if self._group.rank == 0:
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write(partial, generators)
            former = folder.with_name(folder.name + ".former")
            shutil.rmtree(former, ignore_errors=True)
            if folder.exists():
                folder.rename(former)
            partial.rename(folder)
            shutil.rmtree(former, ignore_errors=True)
        collectives.barrier(self._group)
        return str(folder)

    def _write(self, folder: Path, generators: list[Any]) -> None:
        for number, model in enumerate(self._models):
            model.save_pretrained(folder / f"adapter-{number}")
        for number, prepared in enumerate(self._optimizers):
            prepared.optimizer.save(folder / f"optimizer-{number}")
        state = {
            "schema": SCHEMA,
            "step": self.step,
            "models": [model._native.n_steps() for model in self._models],
            "optimizers": [prepared.optimizer.settings() for prepared in self._optimizers],
            "schedulers": [prepared.scheduler.state_dict() for prepared in self._schedulers],
            "loaders": [loader.iteration for loader in self._loaders],
            "random_states": generators,
        }
        (folder / STATE_NAME).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def load_state(self, input_dir: str | os.PathLike[str]) -> None:
        """Goes on from what `save_state` wrote; prepare the same objects before, in the same order."""
        path = Path(input_dir) / STATE_NAME
        state = read_state(path)
        own = {"models": self._models, "optimizers": self._optimizers, "schedulers": self._schedulers, "loaders": self._loaders}
        for name, objects in own.items():
            if len(state[name]) != len(objects):
                reason = f"{path}: is of {len(state[name])} {name}, and {len(objects)} were prepared; prepare the same objects before"
                raise ModelError(reason, path=str(path))
        folder = Path(input_dir)
        for number, (model, n_steps) in enumerate(zip(self._models, state["models"], strict=True)):
            model.load_adapter(folder / f"adapter-{number}")
            model._native.set_n_steps(n_steps)
            model.zero_grad()
        for number, (prepared, settings) in enumerate(zip(self._optimizers, state["optimizers"], strict=True)):
            prepared.optimizer.load(folder / f"optimizer-{number}")
            prepared.optimizer.param_groups[0].update(settings)
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.scheduler.load_state_dict(saved)
        for loader, iteration in zip(self._loaders, state["loaders"], strict=True):
            loader.iteration = iteration
        self.step = state["step"]
        if self._group.rank < len(state["random_states"]):
            set_random_states(state["random_states"][self._group.rank])


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote besides tensors."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}", path=str(path)) from error
    names = ("step", "models", "optimizers", "schedulers", "loaders", "random_states")
    if not isinstance(state, dict) or state.get("schema") != SCHEMA or any(name not in state for name in names):
        raise ModelError(f"{path}: is no state of an accelerator ({SCHEMA})", path=str(path))
    return state


def random_states() -> dict[str, Any]:
    """The states of Python's and NumPy's global generators, as JSON has them."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def set_random_states(states: dict[str, Any]) -> None:
    """Puts them back."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))
