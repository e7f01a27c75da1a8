"""Plans: where every weight would be stored and which device computes with it."""

from __future__ import annotations

import json
import os
from typing import Any

from ._options import Progress, options_of, progress_of


class Plan:
    """Where a model's weights are stored and which devices compute with them. Prints as `tierflow plan` does."""

    def __init__(self, told: tuple[str, str, str]) -> None:
        self._text, self._json, self._map = told

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<tierflow.Plan\n{self._text}>"

    def to_dict(self) -> dict[str, Any]:
        """All of it: the plan, what it was made for, its predicted speed (`forecast`) and the devices (`device_specs`)."""
        return json.loads(self._json)

    @property
    def device_map(self) -> dict[str, int | str]:
        """Module to device, as Accelerate and transformers write it; `Engine(device_map=…)` reads it."""
        return json.loads(self._map)


def plan(
    model: str | os.PathLike[str],
    *,
    machine: str | os.PathLike[str] | None = None,
    progress: Progress = None,
    **options: Any,
) -> Plan:
    """The plan for a model, which is not loaded. `options` are those of `tierflow.Engine`; `machine` is a file that `tierflow devices
    --json` wrote on another machine, which is then planned for."""
    from . import _tierflow

    asked = options_of(model, machine=None if machine is None else os.fspath(machine), **options)
    return Plan(_tierflow.plan(asked, progress_of(progress)))


def devices(*, measure: bool = False) -> list[dict[str, Any]]:
    """The adapters of this machine, its host memory and its disk, with their limits and their rates; `measure` measures these anew."""
    from . import _tierflow

    return json.loads(_tierflow.devices(measure))["devices"]
