"""The arguments with which a model is opened, checked and written as the native module reads them."""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping, Union, cast

from ._text import to_json, utf8
from .errors import ArgumentError

Budget = Union[int, str]
"""Bytes, or a size such as `"4GiB"`."""

Progress = Union[Callable[[int, int], Any], bool, Any, None]
"""A function of bytes done and bytes in all, a bar with `total` and `update(n)` as tqdm's, or True for tqdm itself."""

_DEFAULTS: dict[str, Any] = {
    "device": "auto",
    "device_map": "auto",
    "no_split_module_classes": None,
    "max_memory": None,
    "ctx_size": 0,
    "n_seqs": 1,
    "n_gpu_layers": None,
    "n_cpu_moe": None,
    "kv_dtype": "f16",
    "ubatch_size": None,
    "slots": None,
    "lookahead": None,
    "upload": "auto",
    "io": "pread",
    "kernels": "auto",
    "expert_cache": "auto",
    "strict": False,
    "fit": False,
    "measure": True,
    "gpu_timeout": 120.0,
    "virtual_gpus": 1,
    "threads": None,
    "embedding": False,
    "fetch": True,
    "machine": None,
    "lora": None,
}

# Numbers that are counts, each with the least that it may be.
_LEAST = {"ctx_size": 0, "n_seqs": 1, "n_gpu_layers": -1, "n_cpu_moe": 0, "ubatch_size": 1, "slots": 1, "lookahead": 0, "virtual_gpus": 1, "threads": 1}


def options_of(model: str | os.PathLike[str], **given: Any) -> str:
    """The options as JSON."""
    unknown = [name for name in given if name not in _DEFAULTS]
    if unknown:
        raise TypeError(f"unexpected argument {unknown[0]!r}; there are {', '.join(sorted(_DEFAULTS))}")
    options = {**_DEFAULTS, **given}
    options["model"] = utf8(os.fspath(model), "model")
    options["device"] = device_of(options["device"])
    options["max_memory"] = budgets_of(options["max_memory"])
    options["device_map"] = map_of(options["device_map"])
    options["lora"] = loras_of(options["lora"])
    classes = options["no_split_module_classes"]
    options["no_split_module_classes"] = [classes] if isinstance(classes, str) else classes and list(classes)
    for name, least in _LEAST.items():
        value = options[name]
        if value is None and _DEFAULTS[name] is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least or value >= 1 << 32:
            raise ArgumentError(f"{name}: must be a whole number of at least {least}, not {value!r}", argument=name)
    for name, default in _DEFAULTS.items():
        if isinstance(default, bool) and not isinstance(options[name], bool):
            raise ArgumentError(f"{name}: must be True or False, not {options[name]!r}", argument=name)
        if isinstance(default, str) and name != "device_map":
            utf8(options[name], name)
    if isinstance(options["gpu_timeout"], bool) or not isinstance(options["gpu_timeout"], (int, float)):
        raise ArgumentError(f"gpu_timeout: must be a number of seconds, not {options['gpu_timeout']!r}", argument="gpu_timeout")
    options["gpu_timeout"] = float(options["gpu_timeout"])
    return to_json(options, "options")


def device_of(device: Any) -> str:
    """The device that computes: a word, a number, or what prints as one (`torch.device`)."""
    if isinstance(device, bool):
        raise ArgumentError(f"device: must be a device, not {device!r}", argument="device")
    return f"gpu:{device}" if isinstance(device, int) else utf8(device if isinstance(device, (str, bytes)) else str(device), "device")


def adapter_name(device: Any) -> str:
    """A device of a budget or a map, as the engine calls it: torch's names of accelerators are numbers of adapters."""
    if isinstance(device, int) and not isinstance(device, bool):
        return f"gpu:{device}"
    name = utf8(device if isinstance(device, (str, bytes)) else str(device), "max_memory")
    kind, _, index = name.partition(":")
    if kind in ("cuda", "xpu", "mps", "gpu"):
        return f"gpu:{index or 0}"
    return f"gpu:{name}" if name.isdigit() else name


def budgets_of(max_memory: str | Mapping[Any, Budget] | None) -> str | None:
    """Budgets as `gpu:0=4GiB,cpu=16GiB`. One for the disk has no effect, as with Accelerate."""
    if max_memory is None or isinstance(max_memory, str):
        return max_memory or None
    if not isinstance(max_memory, Mapping):
        raise ArgumentError(f"max_memory: must be a dict of devices and sizes, not {type(max_memory).__name__}", argument="max_memory")
    budgets = []
    for device, size in max_memory.items():
        if device == "disk":
            continue
        if isinstance(size, bool) or not isinstance(size, (int, str)) or (isinstance(size, str) and ("," in size or "=" in size)):
            raise ArgumentError(f"max_memory: {size!r} is no size for {device}; write bytes, or a text such as '4GiB'", argument="max_memory")
        budgets.append(f"{adapter_name(device)}={size}")
    return ",".join(budgets) or None


def loras_of(lora: Any) -> list[list[Any]]:
    """LoRA adapters as pairs of a path and a scale: one path, several, pairs, or a dict of paths and scales."""
    if lora is None:
        return []
    if isinstance(lora, (str, bytes, os.PathLike)):
        return [[utf8(os.fspath(lora), "lora"), 1.0]]
    given = lora.items() if isinstance(lora, Mapping) else lora
    try:
        pairs = [(one, 1.0) if isinstance(one, (str, bytes, os.PathLike)) else tuple(one) for one in given]
        return [[utf8(os.fspath(path), "lora"), float(scale)] for path, scale in pairs]
    except (TypeError, ValueError):
        raise ArgumentError(f"lora: must be paths of LoRA adapters, or pairs of a path and a scale, not {lora!r}", argument="lora") from None


def map_of(device_map: Any) -> Any:
    """A rule's name, or modules and their devices; what `torch.device` and Haystack's maps hold becomes text."""
    if device_map is None or isinstance(device_map, str):
        return device_map
    if not isinstance(device_map, Mapping):
        raise ArgumentError(
            f"device_map: must be auto, balanced, balanced_low_0, sequential or a dict, not {type(device_map).__name__}", argument="device_map"
        )
    return {utf8(name, "device_map"): device if isinstance(device, int) else str(device) for name, device in device_map.items()}


def progress_of(hook: Progress) -> Callable[[int, int], Any] | None:
    """A function of bytes done and bytes in all."""
    if hook is None or hook is False:
        return None
    bar: Any = hook
    if hook is True:
        from tqdm.auto import tqdm

        bar = tqdm(unit="B", unit_scale=True, desc="tierflow")
    update = getattr(bar, "update", None)
    if update is None:
        return cast(Callable[[int, int], Any], bar)
    last = [0, 0]

    def advance(done: int, total: int) -> None:
        if total != last[1]:
            # Another file, or the loading after it.
            bar.total = total
            if done < last[0] and callable(getattr(bar, "reset", None)):
                bar.reset(total)
                last[0] = 0
        update(done - last[0])
        last[:] = [done, total]

    return advance
