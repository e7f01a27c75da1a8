"""`LoraModel`: a model that stays as it is, and an adapter of low rank (LoRA) beside it, which a loop in Python trains."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _tierflow
from ._options import Budget, Progress, budgets_of, device_of, progress_of
from ._text import to_json, utf8
from .claims import precision_of, training_options
from .distributed import current_group
from .errors import ArgumentError
from .losses import Forward, Loss, Output
from .token_batches import TokenBatch

# Draws of the dropout of one process in one step, at most.
DRAWS_OF_A_PROCESS = 1 << 44


@dataclass
class LoraConfig:
    """What is trained, in the words of PEFT's `LoraConfig`.

    - `r`: rows of A and columns of B of each pair of matrices; their product is scaled by `lora_alpha / r`.
    - `target_modules`: ends of the names of linear layers (`["q_proj", "v_proj"]`); None and `"all-linear"` are all of them but the head.
    - `lora_dropout`: the share of the inputs of A that are zeroed in training.
    - `modules_to_save`: ends of the names of norms whose own weights are trained and saved whole (`["norm"]`).
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Any = None
    lora_dropout: float = 0.0
    bias: str = "none"
    task_type: str | None = "CAUSAL_LM"
    modules_to_save: Any = None

    def __post_init__(self) -> None:
        if self.bias != "none":
            raise ArgumentError(f"bias: {self.bias!r} is not trained here; there is none", argument="bias")
        if self.task_type not in (None, "CAUSAL_LM"):
            raise ArgumentError(f"task_type: {self.task_type!r} is not trained here; there is CAUSAL_LM", argument="task_type")
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ArgumentError(f"r: must be a whole number of at least 1, not {self.r!r}", argument="r")

    def targets(self) -> list[str]:
        """The ends of names; none stands for all layers."""
        if self.target_modules is None or self.target_modules == "all-linear":
            return []
        if isinstance(self.target_modules, str):
            reason = f"target_modules: {self.target_modules!r} is no list of names; patterns are not read here"
            raise ArgumentError(reason, argument="target_modules")
        if not (names := [utf8(name, "target_modules") for name in self.target_modules]):
            raise ArgumentError("target_modules: is empty; None stands for all linear layers", argument="target_modules")
        return names

    def saved(self) -> list[str]:
        """The ends of names of norms that are trained whole."""
        if isinstance(self.modules_to_save, str):
            reason = f"modules_to_save: {self.modules_to_save!r} is no list of names"
            raise ArgumentError(reason, argument="modules_to_save")
        return [utf8(name, "modules_to_save") for name in self.modules_to_save or ()]


class Parameter:
    """One of the two matrices beside a linear layer, or the weight or the bias of a norm."""

    requires_grad = True

    def __init__(self, model: LoraModel, name: str, shape: tuple[int, ...], start: int) -> None:
        self.model = model
        self.name = name
        self.shape = shape
        self._values = slice(start, start + self.numel())

    def __repr__(self) -> str:
        return f"<tierflow parameter {self.name} {list(self.shape)}>"

    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """A copy of its values."""
        return self.model.values()[self._values].reshape(self.shape)

    @property
    def grad(self) -> np.ndarray | None:
        """A copy of its gradient; None before the first `backward` of a step."""
        gradients = self.model.gradients()
        return None if gradients is None else gradients[self._values].reshape(self.shape)


class LoraModel:
    """A model whose weights stay as they are, and an adapter beside its linear layers, which is trained.

    ```python
    model = tierflow.LoraModel("model.gguf", tierflow.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    optim = tierflow.optim.AdamW(model.parameters(), lr=2e-4)
    ```

    `model` is a folder, a `.gguf` file or a name on the hub, and `device` what computes, as of `tierflow.Engine`; weights that have no room
    in `max_memory` stream through the GPU, or are read from disk. `seq_len` is the longest sequence that it is called with, and `batch_size` how many sequences of a call are computed side by
    side; the others follow, and their gradients are added. `seed` chooses the first values of the adapter and what dropout zeroes. `adapter`
    is a folder in PEFT's form, of the same layers and rank, to go on from. With `mixed_precision`, frozen matrices that are stored in F32 are
    held in 16 bits (`fp16`, `bf16`); None is what `tierflow launch --mixed-precision` says, or else `no`. All arithmetic is in F32.

    Calls give an object with `loss`. Processes that `tierflow launch` started take a GPU each, or share the cores and the host's memory of
    their machine where `threads` and `max_memory` say nothing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        lora: LoraConfig | None = None,
        *,
        device: Any = "auto",
        max_memory: str | Mapping[Any, Budget] | None = None,
        seq_len: int = 512,
        batch_size: int = 1,
        seed: int = 0,
        adapter: str | os.PathLike[str] | None = None,
        mixed_precision: str | None = None,
        io: str = "pread",
        threads: int | None = None,
        fetch: bool = True,
        progress: Progress = None,
    ) -> None:
        self.config = LoraConfig() if lora is None else lora
        if not isinstance(self.config, LoraConfig):
            raise ArgumentError(f"lora: must be a tierflow.LoraConfig, not {type(lora).__name__}", argument="lora")
        shared = training_options(current_group(), {"device": device_of(device), "max_memory": max_memory, "threads": threads})
        n_threads = shared["threads"]
        counts = {"seq_len": (seq_len, 2), "batch_size": (batch_size, 1), "seed": (seed, 0), "threads": (1 if n_threads is None else n_threads, 1)}
        for name, (value, least) in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 32:
                raise ArgumentError(f"{name}: must be a whole number of at least {least}, not {value!r}", argument=name)
        options = {
            "model": utf8(os.fspath(model), "model"),
            "device": shared["device"],
            "max_memory": budgets_of(shared["max_memory"]),
            "io": utf8(io, "io"),
            "threads": n_threads,
            "fetch": bool(fetch),
            "mixed_precision": precision_of(mixed_precision) or "no",
            "seq_len": seq_len,
            "batch_size": batch_size,
            "seed": seed,
            "r": self.config.r,
            "alpha": float(self.config.lora_alpha),
            "dropout": float(self.config.lora_dropout),
            "target_modules": self.config.targets(),
            "modules_to_save": self.config.saved(),
        }
        self._native = _tierflow.Trainer.open(to_json(options, "options"), progress_of(progress))
        self._facts: dict[str, Any] = json.loads(self._native.facts())
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.training = True
        # Which process of a group it is, whose dropout is its own.
        self.rank = 0
        # Losses that may still be asked for, which are of the adapter as it is before it changes.
        self._pending: weakref.WeakSet[Forward] = weakref.WeakSet()
        self._version = 0
        self._n_draws = 0
        self._has_gradients = False
        if adapter is not None:
            self.load_adapter(adapter)

    def __enter__(self) -> LoraModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._native.is_closed else ""
        return f"<tierflow.LoraModel {self._facts['path']!r}, r={self.config.r}{state}>"

    def close(self) -> None:
        """Gives the model's memory back."""
        self._native.close()

    def __call__(
        self, input_ids: Any, labels: Any, attention_mask: Any = None, num_items_in_batch: int | None = None
    ) -> Output:
        """The loss of sequences: the mean over all labels that are trained, each predicted by the tokens before it.

        `input_ids` and `labels` are lists or arrays of one sequence or several, also of different lengths; a label of -100 is not trained.
        `num_items_in_batch` is what the sum of losses is divided by instead of the number of labels that are trained, for a step of several
        calls. The loss is computed when it is read or goes backward, with the adapter as it is now.
        """
        batch = TokenBatch.of(input_ids, labels, attention_mask, self.vocab_size, self.seq_len)
        if num_items_in_batch is not None and not int(num_items_in_batch) >= 1:
            reason = f"num_items_in_batch: must be at least 1, not {num_items_in_batch!r}"
            raise ArgumentError(reason, argument="num_items_in_batch")
        draw = self._next_draw(len(batch.tokens)) if self.training else None
        forward = Forward(self, batch, draw, None if num_items_in_batch is None else int(num_items_in_batch))
        self._pending.add(forward)
        return Output(Loss(forward))

    def _next_draw(self, n_sequences: int) -> int:
        draw = self._n_draws + self.rank * DRAWS_OF_A_PROCESS
        self._n_draws += -(-n_sequences // self.batch_size)
        return draw

    # How it computes.

    def train(self, mode: bool = True) -> LoraModel:
        """From now on with dropout, where there is one; so it begins."""
        self.training = bool(mode)
        return self

    def eval(self) -> LoraModel:
        """From now on without dropout."""
        return self.train(False)

    # What is trained.

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """What is trained by PEFT's names: matrices, then weights of norms."""
        start, rank = 0, self.config.r
        for module, n_inputs, n_outputs, has_bias in self._facts["layers"]:
            shapes: dict[str, tuple[int, ...]] = {"lora_A.default.weight": (rank, n_inputs), "lora_B.default.weight": (n_outputs, rank)}
            if n_outputs == 0:
                names = ("weight", "bias") if has_bias else ("weight",)
                shapes = {f"modules_to_save.default.{name}": (n_inputs,) for name in names}
            for name, shape in shapes.items():
                parameter = Parameter(self, f"base_model.model.{module}.{name}", shape, start)
                start += parameter.numel()
                yield parameter.name, parameter

    def parameters(self) -> list[Parameter]:
        """What is trained, for an optimiser."""
        return [parameter for _, parameter in self.named_parameters()]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Values that are trained, and all values."""
        n_trained = int(self._facts["n_values"])
        return n_trained, n_trained + int(self._facts["n_parameters"])

    def print_trainable_parameters(self) -> None:
        """Prints how many values are trained."""
        n_trained, n_all = self.get_nb_trainable_parameters()
        print(f"trainable params: {n_trained:,d} || all params: {n_all:,d} || trainable%: {100 * n_trained / n_all:.4f}")

    def values(self) -> np.ndarray:
        """A copy of all values of the adapter: of each layer A, then B; of each norm its weight, then its bias."""
        return np.frombuffer(self._native.values(), "<f4")

    def set_values(self, values: Any) -> None:
        """Puts others in their place."""
        with self._changes():
            self._native.set_values(np.ascontiguousarray(values, "<f4").tobytes())

    def gradients(self) -> np.ndarray | None:
        """A copy of the gradients that were added up, in the order of `values`; None before the first `backward` of a step."""
        return np.frombuffer(self._native.gradients(), "<f4") if self._has_gradients else None

    def set_gradients(self, gradients: Any) -> None:
        """Puts others in their place."""
        self._native.set_gradients(np.ascontiguousarray(gradients, "<f4").tobytes())
        self._has_gradients = True

    def zero_grad(self) -> None:
        """Begins a new sum of gradients."""
        self._native.zero_gradients()
        self._has_gradients = False

    # Files.

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the adapter in PEFT's form into a folder, which is made where there is none."""
        self._native.save_adapter(os.fspath(save_directory))

    def load_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Takes the values of an adapter in PEFT's form, of the same layers and rank."""
        with self._changes():
            self._native.load_adapter(os.fspath(folder))

    # Texts.

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return int(self._facts["vocab_size"])

    @property
    def facts(self) -> dict[str, Any]:
        """Path, layers with an adapter, sizes and special tokens of the model."""
        return dict(self._facts)

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The token ids of a text."""
        return self._native.encode(utf8(text, "text"), add_special)

    def read_records(self, path: str | os.PathLike[str], train_on: str = "answers", truncate: bool = False) -> list[dict[str, list[int]]]:
        """The records of a file as `tierflow train` reads them: `input_ids`, and `labels` with -100 where nothing is trained.

        `train_on` is `answers` or `all`. Records with more than `seq_len` tokens are left out, or cut with `truncate`.
        """
        if train_on not in ("answers", "all"):
            raise ArgumentError(f"train_on: {train_on!r} is neither answers nor all", argument="train_on")
        records, _, _ = json.loads(self._native.records(os.fspath(path), train_on == "all", truncate))
        return [{"input_ids": tokens, "labels": labels} for tokens, labels in records]

    # For losses and optimisers.

    def _changes(self) -> Change:
        return Change(self)


class Change:
    """The adapter changes: losses that may still be asked for are computed before, and none goes backward after it."""

    def __init__(self, model: LoraModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        for forward in list(self._model._pending):
            forward.value()

    def __exit__(self, *_: object) -> None:
        self._model._pending.clear()
        self._model._version += 1
        self._model._n_draws = 0


def get_peft_model(model: str | os.PathLike[str], peft_config: LoraConfig, **options: Any) -> LoraModel:
    """`LoraModel(model, peft_config, …)`, under PEFT's name; `model` is a path or a name, not a module."""
    if not isinstance(model, (str, os.PathLike)):
        raise ArgumentError(f"model: must be a path or a name on the hub, not {type(model).__name__}", argument="model")
    return LoraModel(model, peft_config, **options)
