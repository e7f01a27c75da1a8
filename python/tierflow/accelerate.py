"""Accelerate's planning functions, under its names, with its arguments and its results.

`model` is a checkpoint (a folder, a `.gguf` file, a model in the hub's cache), of which only headers are read, or a `torch.nn.Module` where
torch is there. A script changes the line that imports them.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections import OrderedDict
from typing import Any, Mapping, Sequence, Union

from . import _tierflow
from ._text import to_json
from .engine import Engine
from .errors import ArgumentError
from .plans import devices

logger = logging.getLogger(__name__)

Model = Union[str, "os.PathLike[str]", Any]
Budgets = Mapping[Union[int, str], Union[int, float, str]]

# Bits of a weight in the dtypes for which `accelerate estimate-memory` answers.
_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


def compute_module_sizes(
    model: Model,
    dtype: Any = None,
    special_dtypes: Mapping[str, Any] | None = None,
    buffers_only: bool = False,
) -> dict[str, int]:
    """The bytes of each module and tensor, and under the empty name of all."""
    asked = _asked(dtype=dtype, special_dtypes=special_dtypes)
    return json.loads(_tierflow.sizes(_tree(model), asked, buffers_only))


def calculate_maximum_sizes(model: Model) -> tuple[int, tuple[int, list[str]]]:
    """The bytes of all of the model; the bytes of its largest layer, and the layers that are as large."""
    total, (size, names) = json.loads(_tierflow.maximum_sizes(_tree(model), False))
    return total, (size, names)


def get_max_memory(max_memory: Budgets | None = None) -> dict[int | str, int]:
    """What each device may give: what was given, in bytes and in the order in which devices are filled, or what is free."""
    given = _free_memory() if max_memory is None else max_memory
    return _dict(json.loads(_tierflow.max_memory(_asked(max_memory=given))))


def get_balanced_memory(
    model: Model,
    max_memory: Budgets | None = None,
    no_split_module_classes: str | Sequence[str] | None = None,
    dtype: Any = None,
    special_dtypes: Mapping[str, Any] | None = None,
    low_zero: bool = False,
) -> dict[int | str, int]:
    """Budgets that spread the model evenly over accelerators; with `low_zero`, the first gets what the others leave."""
    asked = _asked(
        max_memory=_free_memory() if max_memory is None else max_memory,
        is_measured=max_memory is None,
        no_split_module_classes=no_split_module_classes,
        dtype=dtype,
        special_dtypes=special_dtypes,
        low_zero=low_zero,
    )
    budgets, notices = json.loads(_tierflow.balanced_memory(_tree(model), asked))
    _bring_forward(notices)
    return _dict(budgets)


def infer_auto_device_map(
    model: Model,
    max_memory: Budgets | None = None,
    no_split_module_classes: str | Sequence[str] | None = None,
    dtype: Any = None,
    special_dtypes: Mapping[str, Any] | None = None,
    verbose: bool = False,
    clean_result: bool = True,
    offload_buffers: bool = False,
    tied_parameters: Any = None,
    fallback_allocation: bool = False,
) -> OrderedDict[str, int | str]:
    """A device for each module: accelerators as long as there is room, then `cpu`, then `disk`. `verbose` and `tied_parameters` change
    nothing: what is tied is found, and `logging` shows what there is to say."""
    asked = _asked(
        max_memory=_free_memory() if max_memory is None else max_memory,
        no_split_module_classes=no_split_module_classes,
        dtype=dtype,
        special_dtypes=special_dtypes,
        clean_result=clean_result,
        offload_buffers=offload_buffers,
        fallback_allocation=fallback_allocation,
    )
    device_map, notices = json.loads(_tierflow.infer(_tree(model), asked))
    _bring_forward(notices)
    return OrderedDict(device_map)


def check_device_map(model: Model, device_map: Mapping[str, Any]) -> None:
    """Refuses a map that leaves a tensor of the model without a device, by the tensors' names."""
    _bring_forward(json.loads(_tierflow.check(_tree(model), to_json(dict(device_map), "device_map"))))


def estimate_memory(model: Model, dtypes: Sequence[str] = ("float32", "float16", "int8", "int4")) -> list[dict[str, Any]]:
    """What `accelerate estimate-memory` prints, in bytes, a dict for each dtype: its `dtype`, the `largest_layer`, the `total_size`, and
    `training`, the most that a step with Adam takes (None where Accelerate gives none)."""
    total, (largest, _) = json.loads(_tierflow.maximum_sizes(_tree(model), True))
    rows = []
    for dtype in dtypes:
        if dtype not in _BITS:
            raise ArgumentError(f"dtypes: {dtype!r} is none of {', '.join(_BITS)}", argument="dtypes")
        share = _BITS[dtype] / 32
        # With float16, the weights are there twice, and gradients take half again.
        training = total * 4 if dtype == "float32" else total * 2 if dtype == "float16" else None
        rows.append({"dtype": dtype, "largest_layer": largest * share, "total_size": total * share, "training": training})
    return rows


def load_checkpoint_and_dispatch(
    model: Model,
    checkpoint: str | os.PathLike[str] | None = None,
    device_map: str | Mapping[str, Any] | None = "auto",
    max_memory: Budgets | None = None,
    no_split_module_classes: str | Sequence[str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    offload_buffers: bool = False,
    dtype: Any = None,
    offload_state_dict: bool | None = None,
    **options: Any,
) -> Engine:
    """An engine of the checkpoint, with weights where `device_map` says: a map, one of Accelerate's rules by name, or `auto`, with which
    tierflow chooses by measured rates and is never predicted to be slower than Accelerate's rules.

    The checkpoint is `checkpoint` where `model` is a module, as with Accelerate, else `model` itself. Weights on disk stay in the
    checkpoint, so that nothing is written to `offload_folder`, and they are computed with as they are stored, whatever `dtype` says.
    `options` are those of `tierflow.Engine`."""
    path = checkpoint if checkpoint is not None else model
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError("checkpoint: is missing; name the folder or the file that has the weights", argument="checkpoint")
    if dtype is not None:
        logger.info("dtype=%s: weights are computed with as they are stored; convert the checkpoint for another dtype", dtype)
    budgets = None if max_memory is None else {device: size for device, size in get_max_memory(max_memory).items() if device != "disk"}
    classes = no_split_module_classes if isinstance(device_map, str) and device_map != "auto" else None
    return Engine(path, device_map=device_map, max_memory=budgets, no_split_module_classes=classes, **options)


def _tree(model: Model) -> Any:
    if isinstance(model, (str, os.PathLike)):
        return _tierflow.module_tree(os.fspath(model), None)
    if isinstance(model, _tierflow.Tree):
        return model
    return _tierflow.module_tree(None, to_json(_form(model), "model"))


def _form(model: Any) -> Mapping[str, Any]:
    """A module as the lists that torch gives, each tensor with its shape and its dtype; or such lists as they are."""
    if isinstance(model, Mapping) and "modules" in model:
        return model
    if not callable(getattr(model, "named_modules", None)):
        raise ArgumentError(f"model: must be a checkpoint's path or a torch.nn.Module, not {type(model).__name__}", argument="model")
    first: dict[int, str] = {}
    parameters = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        tied_to = first.setdefault(id(tensor), name)
        parameters.append([name, list(tensor.shape), _dtype(tensor.dtype), None if tied_to == name else tied_to])
    persistent = set(model.state_dict(keep_vars=True))
    buffers = [[name, list(tensor.shape), _dtype(tensor.dtype), name in persistent] for name, tensor in model.named_buffers()]
    config = getattr(model, "config", None)
    return {
        "modules": [[name, type(module).__name__] for name, module in model.named_modules(remove_duplicate=False)],
        "params": parameters,
        "buffers": buffers,
        "no_split_modules": sorted(getattr(model, "_no_split_modules", None) or ()),
        "config_ties_weights": bool(getattr(config, "tie_word_embeddings", False)),
    }


def _dtype(dtype: Any) -> str | None:
    """A dtype's name: torch's, or that of Accelerate's `CustomDtype`."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    value = getattr(dtype, "value", None)
    return f"custom_{value}" if isinstance(value, str) else str(dtype)


def _asked(**fields: Any) -> str:
    asked = {name: value for name, value in fields.items() if value is not None}
    if "max_memory" in asked:
        if not isinstance(asked["max_memory"], Mapping):
            raise ArgumentError("max_memory: must be a dict of devices and sizes", argument="max_memory")
        asked["max_memory"] = list(asked["max_memory"].items())
    if isinstance(asked.get("no_split_module_classes"), str):
        asked["no_split_module_classes"] = [asked["no_split_module_classes"]]
    elif "no_split_module_classes" in asked:
        asked["no_split_module_classes"] = list(asked["no_split_module_classes"])
    if "dtype" in asked:
        asked["dtype"] = _dtype(asked["dtype"])
    if "special_dtypes" in asked:
        asked["special_dtypes"] = {name: _dtype(dtype) for name, dtype in asked["special_dtypes"].items()}
    return to_json(asked, "arguments")


def _free_memory() -> dict[int | str, int]:
    """What is free of each adapter that is hardware, and of host memory."""
    free: dict[int | str, int] = {}
    for device in devices():
        name, capacity = device["device"], device.get("capacity")
        if capacity is None or device.get("kind") == "software" or name == "disk":
            continue
        free[int(name.removeprefix("gpu:")) if name.startswith("gpu:") else name] = capacity
    return free


def _dict(budgets: list[tuple[int | str, int]]) -> dict[int | str, int]:
    return {device: size for device, size in budgets}


def _bring_forward(notices: list[tuple[str, str]]) -> None:
    """What there is to say, as Accelerate says it: as a warning, or through `logging`."""
    for level, text in notices:
        if level == "user":
            warnings.warn(text, stacklevel=3)
        else:
            logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
