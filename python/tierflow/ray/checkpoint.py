"""Answers that are kept as they come, so that a job which was ended goes on where it was.

Each worker appends lines to a file of its own, so that no two write to one; whoever opens the folder reads all of them.
A line that was cut off when its worker died is left out, and its row computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from pathlib import Path
from typing import Any

from ..errors import UsageError


def key_of(value: Any) -> str:
    """A name for what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Checkpoint:
    """A folder of answers by their keys."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._known = dict(line for part in sorted(self._folder.glob("*.jsonl")) for line in lines_of(part))
            self._file = open(self._folder / f"{uuid.uuid4().hex}.jsonl", "a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"checkpoint {self._folder}: {error}") from error
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __setitem__(self, key: str, answer: Any) -> None:
        with self._lock:
            self._known[key] = answer
            self._file.write(json.dumps([key, answer]) + "\n")
            self._file.flush()


def lines_of(part: Path) -> list[tuple[str, Any]]:
    """The whole lines of a worker's file."""
    found = []
    for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, answer = json.loads(line)
        except (ValueError, TypeError):
            continue
        found.append((key, answer))
    return found
