"""Optimisers of a `LoraModel`, with torch's formulas and arguments, and learning rates over a run, with those of transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import ArgumentError, UsageError
from .lora_model import LoraModel, Parameter

# What a group of parameters may have besides them: the least value, and whether it may be that.
_LEAST = {"lr": 0.0, "weight_decay": 0.0, "eps": 0.0, "momentum": 0.0}


class Optimizer:
    """What all optimisers have in common. `params` are `model.parameters()`, all of one model, or a group with them."""

    kind = ""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        parameters, given = one_group(params)
        self.model = model_of(parameters)
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, **defaults, **given}]
        self._checked()
        self._native = self.model._native.optimizer(self.kind)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, lr: float) -> None:
        self.param_groups[0]["lr"] = lr

    def step(self) -> None:
        """One step of the adapter against the gradients that were added up; nothing where there are none."""
        if not self.model._has_gradients:
            return
        group = self._checked()
        first, second = group.get("betas", (0.9, 0.999))
        epsilon, momentum = (float(group.get(name, 0.0)) for name in ("eps", "momentum"))
        settings = (float(group["weight_decay"]), (float(first), float(second)), epsilon, momentum)
        with self.model._changes():
            self.model._native.step(self._native, float(group["lr"]), settings)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begins a new sum of gradients."""
        self.model.zero_grad()

    def settings(self) -> dict[str, Any]:
        """The numbers of its group, with the learning rate."""
        return {name: value for name, value in self.param_groups[0].items() if name != "params"}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes what it keeps from step to step into a folder."""
        self.model._native.save_optimizer(self._native, os.fspath(folder))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Reads that again."""
        self.model._native.load_optimizer(self._native, os.fspath(folder))

    def _checked(self) -> dict[str, Any]:
        """Its group, whose numbers may have been changed."""
        group = self.param_groups[0]
        for name, least in _LEAST.items():
            if name in group and not (is_number(group[name]) and group[name] >= least):
                raise ArgumentError(f"{name}: must be a number of at least {least:g}, not {group[name]!r}", argument=name)
        if "betas" in group and not (len(group["betas"]) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in group["betas"])):
            raise ArgumentError(f"betas: must be two numbers from 0 to less than 1, not {group['betas']!r}", argument="betas")
        return group


class AdamW(Optimizer):
    """Adam with decoupled weight decay; arguments and defaults are those of `torch.optim.AdamW`."""

    kind = "adamw"

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


class SGD(Optimizer):
    """Gradient descent with momentum; arguments and defaults are those of `torch.optim.SGD`."""

    kind = "sgd"

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})


def is_number(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__float__") and math.isfinite(value)


def one_group(params: Any) -> tuple[list[Any], dict[str, Any]]:
    """The parameters of an optimiser, and what their group says of them; other groups must be empty."""
    if isinstance(params, LoraModel):
        return params.parameters(), {}
    given = list(params) if isinstance(params, Iterable) else [params]
    if not any(isinstance(each, Mapping) for each in given):
        return given, {}
    groups = [{**group, "params": list(group["params"])} for group in given]
    filled = [group for group in groups if group["params"]]
    if len(filled) != 1:
        raise UsageError(f"params: {len(filled)} groups have parameters; all matrices of an adapter are of one group")
    return filled[0].pop("params"), filled[0]


def model_of(parameters: list[Any]) -> LoraModel:
    """Whose parameters these are: all of one model's."""
    for each in parameters:
        if not isinstance(each, Parameter):
            raise UsageError(f"params: {type(each).__name__} is no parameter of a tierflow.LoraModel; pass model.parameters()")
    models = list(dict.fromkeys(parameter.model for parameter in parameters))
    if len(models) != 1:
        raise UsageError(f"params: are of {len(models)} models; an optimiser has all parameters of one")
    names = [name for name, _ in models[0].named_parameters()]
    if sorted(parameter.name for parameter in parameters) != sorted(names):
        raise UsageError(f"params: are {len(parameters)} of the model's {len(names)}; an optimiser has all of them, each once")
    return models[0]


class LambdaLR:
    """Sets an optimiser's learning rate to its first one times `lr_lambda(step)`, from step 0 on."""

    def __init__(self, optimizer: Any, lr_lambda: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.lr_lambda = lr_lambda
        self.base_lr: float = optimizer.param_groups[0].setdefault("initial_lr", optimizer.param_groups[0]["lr"])
        self.last_epoch = 0
        self._set()

    def _set(self) -> None:
        self.optimizer.param_groups[0]["lr"] = self.base_lr * self.lr_lambda(self.last_epoch)

    def step(self) -> None:
        """The learning rate of the next step."""
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The learning rate as it is."""
        return [self.optimizer.param_groups[0]["lr"]]

    def state_dict(self) -> dict[str, Any]:
        """How far it is."""
        return {"base_lr": self.base_lr, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.base_lr, self.last_epoch = state["base_lr"], state["last_epoch"]
        self._set()


def get_scheduler(name: str, optimizer: Any, num_warmup_steps: int = 0, num_training_steps: int | None = None) -> LambdaLR:
    """The schedules of transformers that `tierflow train` has, too: `linear`, `cosine`, `constant`, `constant_with_warmup`."""
    if name not in ("linear", "cosine", "constant", "constant_with_warmup"):
        raise ArgumentError(f"name: {name!r} is none of linear, cosine, constant, constant_with_warmup", argument="name")
    is_constant = name.startswith("constant")
    if num_training_steps is None and not is_constant:
        raise ArgumentError(f"num_training_steps: a {name} schedule needs it", argument="num_training_steps")
    n_rest = max(1, (num_training_steps or 0) - num_warmup_steps)

    def factor(step: int) -> float:
        if step < num_warmup_steps and name != "constant":
            return step / num_warmup_steps
        if is_constant:
            return 1.0
        done = (step - num_warmup_steps) / n_rest
        return max(0.0, 1.0 - done if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))

    return LambdaLR(optimizer, factor)
