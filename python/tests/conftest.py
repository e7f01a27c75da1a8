"""What tests share: models, the program whose answers are the measure, and one engine that most of them use."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from sharing import cluster, pytest_addoption, pytest_collection_modifyitems, pytest_configure

__all__ = ["cluster", "pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


def _named(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set; `cargo xtask python` sets it")
    return Path(value)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return _named("TIERFLOW_SMOLLM2")


@pytest.fixture(scope="session")
def models() -> Path:
    """A folder with `tiny.gguf` and `tiny`, models of seeded random weights, and `llama-8b`, the headers of one."""
    return _named("TIERFLOW_TEST_MODELS")


@pytest.fixture(scope="session")
def program() -> Callable[..., Any]:
    """Runs the program: its JSON."""
    path = _named("TIERFLOW_PROGRAM")

    def run(*arguments: object) -> Any:
        command = [str(path), *map(str, arguments), "--json"]
        output = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert output.returncode == 0, output.stderr
        return json.loads(output.stdout)

    return run


@pytest.fixture(scope="session")
def engine(smollm2: Path) -> Any:
    """SmolLM2 on the host, for two answers at a time."""
    import tierflow

    with tierflow.Engine(smollm2, device="cpu", ctx_size=512, n_seqs=2) as engine:
        yield engine


@pytest.fixture
def tiny(models: Path) -> Any:
    """The tiny model on the host, for one answer at a time."""
    import tierflow

    with tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=256) as engine:
        yield engine
