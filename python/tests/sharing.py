"""What `conftest.py` takes from here: the flag `--long`, and one small Ray cluster of this machine for those that need it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests that take long, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes long; runs with --long alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long (--long)"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Ray, connected to a cluster of this machine alone, with four CPUs and bounded memory."""
    pytest.importorskip("ray")
    from tierflow.ray.cluster import connected

    # Workers find the classes of tests, too.
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    with connected(None, 4, object_store_memory=128 << 20) as ray:
        yield ray
