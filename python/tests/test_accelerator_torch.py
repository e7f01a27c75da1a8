"""Data loaders of torch are shared out as the real Accelerate does it; nothing here runs where torch is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from groups import in_processes  # noqa: E402
from torch.utils.data import DataLoader, Dataset, IterableDataset  # noqa: E402

from tierflow.accelerator import Accelerator  # noqa: E402
from tierflow.prepared import DataLoaderConfiguration  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "golden" / "accelerate_cases.json").read_text())
FLAGS = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "data_seed")


class Numbers(Dataset):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> int:
        return i


class Stream(IterableDataset):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


def prepare(case: dict[str, Any], loader: Any, group: Any) -> tuple[Accelerator, Any]:
    config = DataLoaderConfiguration(**{name: case[name] for name in FLAGS if name in case})
    accelerator = Accelerator(cpu=True, dataloader_config=config, group=group)
    return accelerator, accelerator.prepare(loader)


@pytest.mark.parametrize("case", GOLDEN["shuffled"], ids=str)
def test_shuffled(case: dict[str, Any]) -> None:
    def run(group: Any) -> Any:
        generator = torch.Generator().manual_seed(7 + group.rank)
        dataset = Numbers(case["length"])
        _, loader = prepare(case, DataLoader(dataset, case["batch_size"], shuffle=True, generator=generator), group)
        return [[batch.tolist() for batch in loader] for _ in range(2)]

    assert in_processes(case["processes"], run) == case["expected"]


def plain_cases() -> list[dict[str, Any]]:
    skipped = ("nested", "batches", "order")
    cases = [case for case in GOLDEN["loaders"] if "error" not in case["expected"]]
    return [case for case in cases if not any(key in case for key in skipped) and case.get("kind") != "sized_iterable"]


@pytest.mark.parametrize("case", plain_cases(), ids=lambda case: str({k: v for k, v in case.items() if k != "expected"}))
def test_loader(case: dict[str, Any]) -> None:
    def run(group: Any) -> Any:
        dataset = Numbers(case["length"]) if case.get("kind", "map") == "map" else Stream(case["length"])
        loader = DataLoader(dataset, case["batch_size"], drop_last=case.get("drop_last", False))
        accelerator, loader = prepare(case, loader, group)
        if case["expected"]["gather"] == "arrays":
            return [accelerator.gather_for_metrics(batch).tolist() for batch in loader]
        return [batch.tolist() for batch in loader]

    of_each = in_processes(case["processes"], run)
    if case["expected"]["gather"] == "arrays":
        assert of_each == [case["expected"]["gathered"]] * case["processes"]
    else:
        assert of_each == case["expected"]["batches"]


def test_tensors_are_reduced_and_padded() -> None:
    def run(group: Any) -> Any:
        accelerator = Accelerator(cpu=True, group=group)
        mine = torch.arange(group.rank + 1, dtype=torch.bfloat16)
        padded = accelerator.pad_across_processes(mine, pad_index=9)
        return [accelerator.reduce(padded, how).tolist() for how in ("sum", "mean", "max")]

    assert in_processes(2, run) == [[[0, 10], [0, 5], [0, 9]]] * 2
