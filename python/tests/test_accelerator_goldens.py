"""Sharding, dispatching and gathering give what the real Accelerate gave (`golden/accelerate_cases.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import in_processes, plain

from tierflow.accelerator import Accelerator
from tierflow.data import DataLoader
from tierflow.errors import CollectiveError, UsageError
from tierflow.prepared import DataLoaderConfiguration

GOLDEN = json.loads((Path(__file__).parent / "golden" / "accelerate_cases.json").read_text())
FLAGS = ("split_batches", "dispatch_batches", "even_batches")


class Stream:
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.length


class Batches:
    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter([list(batch) for batch in self.batches])


def nested(i: int) -> dict[str, Any]:
    return {"id": i, "pair": (np.array([i, -i]), i / 2)}


def make_loader(case: dict[str, Any]) -> DataLoader:
    kind, length = case.get("kind", "map"), case["length"]
    sizes = {"batch_size": case.get("batch_size", 1), "drop_last": case.get("drop_last", False)}
    if kind != "map":
        return DataLoader(Stream(length) if kind == "iterable" else SizedStream(length), **sizes)
    dataset = [nested(i) for i in range(length)] if case.get("nested") else range(length)
    if "batches" in case:
        return DataLoader(dataset, batch_sampler=Batches(case["batches"]))
    return DataLoader(dataset, sampler=case.get("order"), **sizes)


def prepare(case: dict[str, Any], group: Any) -> tuple[Accelerator, Any]:
    config = DataLoaderConfiguration(**{name: case[name] for name in FLAGS if name in case})
    accelerator = Accelerator(cpu=True, dataloader_config=config, group=group)
    return accelerator, accelerator.prepare(make_loader(case))


def run_loader(case: dict[str, Any], group: Any) -> dict[str, Any]:
    _, loader = prepare(case, group)
    result: dict[str, Any] = {"batches": [plain(batch) for batch in loader]}
    try:
        result["len"] = len(loader)
    except TypeError:
        result["len"] = None
    mode = case["expected"].get("gather")
    if mode:
        accelerator, loader = prepare(case, group)
        values = ((batch if mode == "arrays" else plain(batch)) for batch in loader)
        result["gathered"] = [plain(accelerator.gather_for_metrics(value)) for value in values]
    return result


def name(case: dict[str, Any]) -> str:
    shown = {key: value for key, value in case.items() if key not in ("expected", "inputs", "options")}
    return "-".join(key if value is True else f"{key}={value}" for key, value in shown.items()).replace(" ", "")


@pytest.mark.parametrize("case", GOLDEN["loaders"], ids=name)
def test_loader(case: dict[str, Any]) -> None:
    expected = case["expected"]
    if "error" in expected:
        with pytest.raises(UsageError):
            in_processes(case["processes"], lambda group: run_loader(case, group))
        return
    results = in_processes(case["processes"], lambda group: run_loader(case, group))
    assert [of["batches"] for of in results] == expected["batches"]
    assert [of["len"] for of in results] == expected["len"]
    for of in results:
        assert of.get("gathered") == expected.get("gathered")


def run_operation(case: dict[str, Any], group: Any) -> Any:
    accelerator = Accelerator(cpu=True, group=group)
    value, options = case["inputs"][group.rank], case.get("options", {})
    if case["operation"] != "split_between_processes":
        value = np.array(value, dtype=np.int64 if isinstance(np.array(value).flat[0], np.integer) else np.float32)
        return plain(getattr(accelerator, case["operation"])(value, **options))
    with accelerator.split_between_processes(np.array(value) if case.get("arrays") else value, **options) as part:
        return plain(part)


@pytest.mark.parametrize("case", GOLDEN["operations"], ids=name)
def test_operation(case: dict[str, Any]) -> None:
    assert in_processes(case["processes"], lambda group: run_operation(case, group)) == case["expected"]


def test_enough_cases() -> None:
    assert len(GOLDEN["loaders"]) >= 60
    assert {case["processes"] for case in GOLDEN["loaders"]} == {1, 2, 3, 4}


def test_uneven_steps_end_in_an_error() -> None:
    """Where a process has fewer steps, a gather cannot succeed; it names the process instead of waiting for it."""

    def steps(group: Any) -> None:
        config = DataLoaderConfiguration(even_batches=False)
        accelerator = Accelerator(cpu=True, dataloader_config=config, group=group)
        for batch in accelerator.prepare(DataLoader(range(5), batch_size=2)):
            accelerator.gather_for_metrics(batch)

    with pytest.raises(CollectiveError, match="rank 0 waits in gather for rank 1, which has ended"):
        in_processes(2, steps)
