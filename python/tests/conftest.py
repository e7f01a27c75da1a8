"""What all tests share."""

from __future__ import annotations

from sharing import cluster, pytest_addoption, pytest_collection_modifyitems, pytest_configure

__all__ = ["cluster", "pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]
