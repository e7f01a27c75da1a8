"""The engine of a component: described when that is made, opened when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from haystack.utils import ComponentDevice
from tierflow import Engine


class HeldEngine:
    """An engine that is opened once, by whichever thread needs it first, and can be opened again after it was closed."""

    def __init__(self, model: str, device: ComponentDevice | None, device_map: Any, max_memory: Any, **options: Any) -> None:
        self._model = model
        self._options = {**options, **placement(device, device_map), "max_memory": max_memory}
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def open(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self._model, **self._options)
            return self._engine

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None


def placement(device: ComponentDevice | None, device_map: Any) -> dict[str, Any]:
    """Arguments of `Engine` for a device in Haystack's words: one computes, several are a device map."""
    if device is None:
        return {"device_map": "auto" if device_map is None else device_map}
    if device.has_multiple_devices:
        if device_map is not None:
            raise ValueError("device: has several devices, which are a device map; leave device_map out")
        return {"device_map": device.to_hf()}
    return {"device": device.to_torch_str(), "device_map": "auto" if device_map is None else device_map}


def named_budgets(max_memory: Mapping[int | str, int | str] | None) -> dict[str, int | str] | None:
    """Budgets whose devices are texts, as keys of YAML are; the engine reads `gpu:0` as it reads 0."""
    if max_memory is None:
        return None
    return {f"gpu:{device}" if isinstance(device, int) else device: size for device, size in max_memory.items()}


def read_device(data: dict[str, Any]) -> None:
    """Reads the device of a component that was serialised, in place."""
    parameters = data.get("init_parameters", {})
    if parameters.get("device") is not None:
        parameters["device"] = ComponentDevice.from_dict(parameters["device"])
