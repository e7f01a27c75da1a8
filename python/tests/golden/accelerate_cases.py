"""Writes accelerate_cases.json: what the real Accelerate gives each of 1 to 4 gloo processes.

    python accelerate_cases.py        (torch and accelerate are needed here; the tests that read the file need neither)

A case of `loaders` is a data loader over the numbers 0 to `length` - 1 (or over `batches`, a batch sampler of its own): what each process gets of it, and what `gather_for_metrics` makes of that, step by step.
`gather` says how it was asked: `arrays` where all processes have batches of one size at each step, `objects` where these differ, null where some have fewer steps, which no collective survives.
A case of `shuffled` is two epochs of a shuffled loader of torch's, whose generator each process seeds differently.
A case of `operations` is one collective operation: its input on each process, and its results.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset, IterableDataset

OUT = Path(__file__).with_suffix(".json")
SIZES = [(1, 2), (3, 4), (7, 2), (8, 2), (11, 3)]
FLAGS: list[dict[str, Any]] = [
    {},
    {"drop_last": True},
    {"even_batches": False},
    {"split_batches": True},
    {"split_batches": True, "drop_last": True},
    {"split_batches": True, "even_batches": False},
    {"dispatch_batches": True},
    {"dispatch_batches": True, "drop_last": True},
    {"dispatch_batches": True, "split_batches": True},
    {"kind": "iterable"},
    {"kind": "iterable", "drop_last": True},
    {"kind": "iterable", "split_batches": True},
    {"kind": "iterable", "dispatch_batches": False},
    {"kind": "iterable", "dispatch_batches": False, "drop_last": True},
    {"kind": "iterable", "dispatch_batches": False, "split_batches": True},
]


class Numbers(Dataset):
    def __init__(self, length: int, nested: bool) -> None:
        self.length, self.nested = length, nested

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return {"id": i, "pair": (torch.tensor([i, -i]), float(i) / 2)} if self.nested else i


class Stream(IterableDataset):
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


def loader_cases(n: int) -> list[dict[str, Any]]:
    cases = []
    for length, batch_size in SIZES:
        for flags in FLAGS:
            size = batch_size * n if flags.get("split_batches") else batch_size
            cases.append({"length": length, "batch_size": size, **flags})
    cases += [{"length": length, "batch_size": 2, "nested": True} for length in (5, 8)]
    cases.append({"length": 5, "batch_size": 2, "nested": True, "dispatch_batches": True})
    cases += [{"length": 0, "batch_size": 2}, {"length": 0, "batch_size": 2, "dispatch_batches": True}]
    cases += [{"length": 9, "batch_size": 2, "kind": "sized_iterable", "dispatch_batches": d} for d in (None, False)]
    cases += [{"length": 9, "batch_size": 2, "order": [4, 0, 8, 2, 6, 1, 7, 3, 5]}]
    cases += [{"length": 12, "batch_size": 2, "order": [11, 3, 7], "even_batches": even} for even in (True, False)]
    ragged = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]
    cases += [{"length": 11, "batches": ragged, "even_batches": even} for even in (True, False)]
    cases.append({"length": 9, "batch_size": 5, "split_batches": True})
    return [{"processes": n, **case} for case in cases]


def make_loader(case: dict[str, Any]) -> DataLoader:
    kind, length = case.get("kind", "map"), case["length"]
    if kind != "map":
        dataset = Stream(length) if kind == "iterable" else SizedStream(length)
        return DataLoader(dataset, batch_size=case["batch_size"], drop_last=case.get("drop_last", False))
    dataset = Numbers(length, case.get("nested", False))
    if "batches" in case:
        return DataLoader(dataset, batch_sampler=Batches(case["batches"]))
    return DataLoader(
        dataset, batch_size=case["batch_size"], drop_last=case.get("drop_last", False), sampler=case.get("order")
    )


def prepare(case: dict[str, Any]) -> tuple[Accelerator, Any]:
    flags = ("split_batches", "dispatch_batches", "even_batches")
    config = DataLoaderConfiguration(**{name: case[name] for name in flags if name in case})
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    return accelerator, accelerator.prepare(make_loader(case))


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def first_leaf(batch: Any) -> torch.Tensor:
    return batch["id"] if isinstance(batch, dict) else batch


def run_loader(case: dict[str, Any]) -> dict[str, Any]:
    try:
        accelerator, loader = prepare(case)
        batches = [plain(batch) for batch in loader]
    except (ValueError, TypeError) as error:
        return {"error": type(error).__name__}
    try:
        n_batches = len(loader)
    except TypeError:
        n_batches = None
    each = gather_object([{"len": n_batches, "batches": batches}])
    expected = {"len": [of["len"] for of in each], "batches": [of["batches"] for of in each]}
    expected["gather"] = gather_mode(expected["batches"])
    if expected["gather"]:
        expected["gathered"] = gathered(case, expected["gather"])
    return expected


def gather_mode(batches: list[list[Any]]) -> str | None:
    sizes = [[len(batch["id"] if isinstance(batch, dict) else batch) for batch in of] for of in batches]
    if len({len(of) for of in sizes}) > 1 or any(size == 0 for of in sizes for size in of):
        return None
    return "arrays" if all(of == sizes[0] for of in sizes) else "objects"


def gathered(case: dict[str, Any], mode: str) -> list[Any]:
    accelerator, loader = prepare(case)
    steps = []
    for batch in loader:
        value = batch if mode == "arrays" else plain(first_leaf(batch))
        steps.append(plain(accelerator.gather_for_metrics(value)))
    return steps


def shuffled_cases(n: int) -> list[dict[str, Any]]:
    seeds: list[dict[str, Any]] = [{}, {"use_seedable_sampler": True, "data_seed": 5}]
    return [{"processes": n, "length": 7, "batch_size": 2, **seed} for seed in seeds]


def run_shuffled(case: dict[str, Any]) -> list[Any]:
    config = DataLoaderConfiguration(**{name: case[name] for name in ("use_seedable_sampler", "data_seed") if name in case})
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    generator = torch.Generator().manual_seed(7 + accelerator.process_index)
    dataset = Numbers(case["length"], False)
    loader = accelerator.prepare(DataLoader(dataset, batch_size=case["batch_size"], shuffle=True, generator=generator))
    return gather_object([[[plain(batch) for batch in loader] for _ in range(2)]])


def operation_cases(n: int) -> list[dict[str, Any]]:
    rows = [[[r * 10 + c for c in range(3)]] * (r + 1) for r in range(n)]
    vectors = [[r + 1.5, -2.0 * r] for r in range(n)]
    cases: list[dict[str, Any]] = []
    cases += [{"operation": "gather", "inputs": vectors}, {"operation": "gather", "inputs": [float(r) for r in range(n)]}]
    cases += [{"operation": "reduce", "inputs": vectors, "options": {"reduction": r}} for r in ("sum", "mean", "max")]
    for options in ({}, {"dim": 0, "pad_index": -1}, {"pad_first": True}, {"dim": 1}, {"dim": -2}, {"dim": 5}):
        cases.append({"operation": "pad_across_processes", "inputs": rows, "options": options})
    for length in (0, 1, 5, 8):
        values = list(range(length))
        cases.append({"operation": "split_between_processes", "inputs": [values] * n})
        cases.append({"operation": "split_between_processes", "inputs": [{"a": values, "b": values[::-1]}] * n})
        if length:
            padded = {"apply_padding": True}
            cases.append({"operation": "split_between_processes", "inputs": [values] * n, "options": padded})
            arrays = {"operation": "split_between_processes", "arrays": True, "inputs": [values] * n}
            cases += [arrays, {**arrays, "options": padded}]
    return [{"processes": n, **case} for case in cases]


def run_operation(case: dict[str, Any]) -> list[Any]:
    accelerator = Accelerator(cpu=True)
    value, options = case["inputs"][accelerator.process_index], case.get("options", {})
    if case["operation"] == "split_between_processes":
        value = torch.tensor(value) if case.get("arrays") else json.loads(json.dumps(value))
        with accelerator.split_between_processes(value, **options) as part:
            result = plain(part)
    else:
        result = plain(getattr(accelerator, case["operation"])(torch.tensor(value), **options))
    return gather_object([result])


def work(rank: int, n: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    loaders = [{**case, "expected": run_loader(case)} for case in loader_cases(n)]
    operations = [{**case, "expected": run_operation(case)} for case in operation_cases(n)]
    shuffled = [{**case, "expected": run_shuffled(case)} for case in shuffled_cases(n)]
    if rank == 0:
        OUT.with_suffix(f".{n}.json").write_text(json.dumps({"loaders": loaders, "operations": operations, "shuffled": shuffled}))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main() -> None:
    whole: dict[str, list[Any]] = {"loaders": [], "operations": [], "shuffled": []}
    for n in (1, 2, 3, 4):
        torch.multiprocessing.spawn(work, (n, free_port()), nprocs=n)
        part = OUT.with_suffix(f".{n}.json")
        for name, cases in json.loads(part.read_text()).items():
            whole[name] += cases
        part.unlink()
    lines = [
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in cases) + "\n ]"
        for name, cases in whole.items()
    ]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
