"""Threads that stand for the processes of a group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tierflow.distributed.group import Group, LocalGroup
from tierflow.distributed.rendezvous import Rendezvous


def in_processes(n: int, work: Callable[[Group], Any], timeout: float = 20.0) -> list[Any]:
    """The results of `work` on `n` ranks; the error of the lowest rank that has one is raised."""
    rendezvous = Rendezvous(n)
    results: list[Any] = [None] * n
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = work(LocalGroup(rank, rendezvous, timeout))
            rendezvous.leave(rank, "has ended")
        except BaseException as error:
            errors[rank] = error
            rendezvous.leave(rank, f"has failed ({error})")

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 5)
        assert not thread.is_alive(), "a rank hangs"
    if errors:
        raise errors[min(errors)]
    return results


def plain(value: Any) -> Any:
    """Arrays as lists, tuples too."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
