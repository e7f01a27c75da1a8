"""tierflow runs language models that are larger than the GPU's memory, on any vendor's GPU.

Names are imported when they are first used, so that the parts written in Python alone work without the native module.
"""

from __future__ import annotations

import importlib
from typing import Any

# Which module has a name of this package.
_HOMES: dict[str, str] = {
    "Accelerator": ".accelerator",
    "DataLoader": ".data",
    "DataLoaderConfiguration": ".prepared",
    "Engine": ".engine",
    "Llama": ".llama",
    "LoraConfig": ".lora_model",
    "LoraModel": ".lora_model",
    "Plan": ".plans",
    "Stream": ".streams",
    "TierflowError": ".errors",
    "__version__": "._tierflow",
    "devices": ".plans",
    "get_peft_model": ".lora_model",
    "pad_samples": ".token_batches",
    "plan": ".plans",
    "set_seed": ".seeds",
}

# Modules that may be used without an import of their own.
_MODULES = frozenset({"accelerate", "errors", "launch", "optim", "ray"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES) | _MODULES)
