"""Batch inference on Ray. What an engine answers is not the matter here, so that most tests have one that answers at once."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierflow import errors
from tierflow.ray.checkpoint import Checkpoint
from tierflow.ray.cluster import own_errors
from tierflow.ray.predictor import BatchPredictor, predict


class Echo:
    """Answers at once, notes in `folder` what it was asked, and kills its process where a row says so, the first time."""

    n_seqs = 2

    def __init__(self, folder: str) -> None:
        self.asked = Path(folder) / f"asked-{os.getpid()}"
        self.killed = Path(folder) / "killed"

    def generate(self, prompt: str, **options: Any) -> str:
        if prompt == "die" and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), 9)
        if prompt == "too long":
            raise errors.UsageError("prompt: 9 tokens, and the context has 8")
        with self.asked.open("a") as file:
            file.write(prompt + "\n")
        time.sleep(0.005)
        return f"{prompt}!{options.get('mark', '')}"

    def embed(self, text: str) -> np.ndarray:
        return np.array([len(text), 0.5], dtype=np.float32)


class Poisoned(Echo):
    """Is killed again and again."""

    def generate(self, prompt: str, **options: Any) -> str:
        self.killed.unlink(missing_ok=True)
        return super().generate(prompt, **options)


def asked(folder: Path) -> list[str]:
    return sorted(line for file in folder.glob("asked-*") for line in file.read_text().splitlines())


@pytest.fixture
def opener(tmp_path: Path) -> Any:
    return functools.partial(Echo, str(tmp_path))


def test_a_batch_is_answered(opener: Any) -> None:
    predictor = BatchPredictor(open_engine=opener, options={"mark": "?"})
    batch = predictor({"id": np.arange(3), "prompt": np.array(["a", "b", "c"])})
    assert batch["answer"].tolist() == ["a!?", "b!?", "c!?"] and batch["id"].tolist() == [0, 1, 2]


def test_vectors_become_a_matrix(opener: Any) -> None:
    predictor = BatchPredictor(open_engine=opener, task="embed", input_column="text", output_column="vector")
    vectors = predictor({"text": np.array(["a", "bcd"])})["vector"]
    assert vectors.tolist() == [[1, 0.5], [3, 0.5]] and vectors.dtype == np.float32


def test_what_is_refused_ends_the_job_or_is_kept(opener: Any) -> None:
    batch = {"prompt": np.array(["a", "too long"])}
    with pytest.raises(errors.UsageError, match="9 tokens"):
        BatchPredictor(open_engine=opener)(batch)
    kept = BatchPredictor(open_engine=opener, errors="keep")(batch)
    assert kept["answer"].tolist() == ["a!", None]
    assert kept["error"].tolist() == [None, "UsageError: prompt: 9 tokens, and the context has 8"]


def test_only_what_is_missing_is_computed(opener: Any, tmp_path: Path) -> None:
    """Of a checkpoint whose last line was cut off, the other lines are read; other options, and other keys, are other answers."""
    folder = tmp_path / "checkpoint"

    def answer(*prompts: str, **how: Any) -> list[str]:
        predictor = BatchPredictor(open_engine=opener, checkpoint=folder, **how)
        return predictor({"prompt": np.array(prompts), "id": np.arange(len(prompts))})["answer"].tolist()

    assert answer("a", "b") == ["a!", "b!"]
    with next(folder.glob("*.jsonl")).open("a") as file:
        file.write('["cut o')
    assert answer("a", "b", "c") == ["a!", "b!", "c!"]
    assert asked(tmp_path) == ["a", "b", "c"]
    assert answer("a", options={"mark": "?"}) == ["a!?"]
    assert answer("a", "a", key_column="id") == ["a!", "a!"]
    assert asked(tmp_path) == ["a"] * 4 + ["b", "c"]


def test_bad_arguments(opener: Any, tmp_path: Path) -> None:
    for how, message in (
        ({"task": "guess"}, "none of generate"),
        ({"errors": "ignore"}, "neither raise nor keep"),
        ({"model": "m"}, "either model or open_engine"),
        ({"checkpoint": tmp_path / "file" / "x"}, "checkpoint .*file"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(errors.UsageError, match=message):
            BatchPredictor(**{"open_engine": opener, **how})  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="no column 'prompt'; it has text"):
        BatchPredictor(open_engine=opener)({"text": np.array(["a"])})


def rows(ray: Any, prompts: list[str]) -> Any:
    return ray.data.from_items([{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)], override_num_blocks=8)


@pytest.fixture
def data(cluster: Any) -> Any:
    pytest.importorskip("pyarrow")
    context = cluster.data.DataContext.get_current()
    context.enable_progress_bars = False
    return cluster


def test_a_worker_killed_midway(data: Any, opener: Any, tmp_path: Path) -> None:
    """Its rows are answered by another: all of them, and none twice."""
    prompts = [f"row {i}" for i in range(40)]
    prompts[17] = "die"
    answered = predict(rows(data, prompts), workers=2, batch_size=5, num_cpus=0.5, open_engine=opener).take_all()
    assert (tmp_path / "killed").exists()
    assert sorted((row["id"], row["answer"]) for row in answered) == [(i, f"{p}!") for i, p in enumerate(prompts)]


def test_a_row_that_kills_every_worker_ends_the_job(data: Any, tmp_path: Path) -> None:
    opener = functools.partial(Poisoned, str(tmp_path))
    with pytest.raises(errors.WorkerDiedError, match="answering: "), own_errors("answering"):
        predict(rows(data, ["a", "die", "b"]), batch_size=1, num_cpus=0.5, max_restarts=1, open_engine=opener).take_all()


def test_a_job_goes_on_where_it_was(data: Any, opener: Any, tmp_path: Path) -> None:
    """What was answered before a job failed is not computed again."""
    prompts = [f"row {i}" for i in range(30)]
    how = {"workers": 2, "batch_size": 5, "num_cpus": 0.5, "open_engine": opener, "checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(errors.UsageError, match="9 tokens"), own_errors("answering"):
        predict(rows(data, [*prompts, "too long"]), **how).take_all()
    done = asked(tmp_path)
    answered = predict(rows(data, [*prompts, "more"]), **how).take_all()
    assert sorted(row["answer"] for row in answered) == sorted(f"{p}!" for p in [*prompts, "more"])
    assert asked(tmp_path) == sorted([*prompts, "more"]) and len(done) <= 30
    lines = [json.loads(line) for file in (tmp_path / "checkpoint").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == len({key for key, _ in lines}) == 31


def test_a_folder_is_read_by_all_workers(tmp_path: Path) -> None:
    first, second = Checkpoint(tmp_path), Checkpoint(tmp_path)
    first["a"], second["b"] = 1, [2.5]
    third = Checkpoint(tmp_path)
    assert ("a" in third, third["b"], "c" in third) == (True, [2.5], False)


@pytest.mark.long
def test_an_object_store_that_is_full() -> None:
    """Without a disk to spill to, results that are larger than the store end in an error that names it."""
    program = """
import ray, sys, numpy as np
from tierflow.ray.cluster import connected, own_errors
from tierflow.errors import ObjectStoreFullError

def large():
    return np.ones(60 << 20, np.uint8)

# However much room there is, the disk counts as full.
config = {"automatic_object_spilling_enabled": False, "object_store_full_delay_ms": 100, "local_fs_capacity_threshold": 0.0}
with connected(None, 2, object_store_memory=80 << 20, _system_config=config) as ray:
    try:
        with own_errors("gathering"):
            held = [ray.put(large()) for _ in range(20)]
    except ObjectStoreFullError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert "gathering: Ray's object store is full" in result.stdout, result.stderr[-2000:]
    assert "object_store_memory" in result.stdout


def test_answers_are_those_of_the_engine(data: Any) -> None:
    folder = os.environ.get("TIERFLOW_TEST_MODELS")
    if not folder:
        pytest.skip("TIERFLOW_TEST_MODELS is not set; `cargo xtask python` sets it")
    from tierflow.engine import Engine

    model, prompts, options = os.path.join(folder, "tiny"), ["one", "two", "three and more"], {"max_tokens": 8, "temperature": 0}
    with Engine(model, device="cpu", ctx_size=64) as engine:
        expected = [engine.generate(prompt, **options) for prompt in prompts]
    how = {"options": options, "engine": {"ctx_size": 64}, "num_cpus": 0.5, "batch_size": 2}
    answered = predict(rows(data, prompts), model, **how).take_all()
    assert [row["answer"] for row in sorted(answered, key=lambda row: row["id"])] == expected
