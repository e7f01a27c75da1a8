"""Opens a model over the two nodes of a Ray cluster, and writes what it saw to a file, as JSON; `test_ray_pipeline.py` looks at it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

from tierflow.ray import PipelineEngine
from tierflow.ray.cluster import import_ray, loopback_only, started

GREEDY = {"max_tokens": 12, "temperature": 0}


def refusal(work: Callable[[], Any]) -> tuple[str, Any]:
    """The exception that it ends with."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}", getattr(error, "rank", None)
    return "no exception", None


def processes(engine: PipelineEngine) -> list[int]:
    """Those of the workers."""
    return [each["pid"] for each in engine._workers.described]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def seen(model: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    how: dict[str, Any] = {"device": "cpu", "ctx_size": 64, "max_memory": {"cpu": "64MiB"}, "measure": False, "timeout": 180}
    planned = PipelineEngine(model, load=False, **how)
    told["plan"], told["printed"] = planned.plan.to_dict(), str(planned.plan)
    told["before loading"], _ = refusal(lambda: planned.generate("text"))
    planned.load()
    with planned as engine:
        told["nodes"] = [each["node"] for each in engine._workers.described]
        told["text"] = engine.generate([1, 2, 3], **GREEDY)
        told["streamed"] = "".join(engine.stream([1, 2, 3], **GREEDY))
        told["long"] = engine.generate([token % 90 for token in range(40)], **GREEDY)
        told["tokens"] = engine.tokenize("one model")
        told["logits"] = [row.tobytes().hex() for row in engine.logits([5, 6, 7])]
        told["too long"], _ = refusal(lambda: engine.generate(list(range(90)), **GREEDY))
        workers = processes(engine)
        os.kill(workers[1], signal.SIGKILL)
        told["died"], told["died rank"] = refusal(lambda: engine.generate([1, 2, 3], **GREEDY))
        told["died again"], _ = refusal(lambda: engine.generate([1, 2, 3], **GREEDY))
        os.kill(workers[0], signal.SIGKILL)
        told["first died"], told["first died rank"] = refusal(lambda: engine.generate([1, 2, 3], **GREEDY))
    told["closed"], _ = refusal(lambda: engine.generate([1, 2, 3]))
    told["no room"], _ = refusal(lambda: PipelineEngine(model, **{**how, "max_memory": [{"cpu": "64MiB"}, {"cpu": "1KiB"}]}))
    told["no nodes"], _ = refusal(lambda: PipelineEngine(model, 3, **{**how, "timeout": 2}))
    with PipelineEngine(model, forward_timeout=0.5, **how) as engine:
        workers += processes(engine)
        # One that is there and gives no answer.
        os.kill(workers[-1], signal.SIGSTOP)
        told["hung"], _ = refusal(lambda: engine.generate([1, 2, 3], **GREEDY))
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    told["left running"] = [pid for pid in workers if is_running(pid)]
    return told


def main() -> None:
    ray = import_ray()
    from ray.cluster_utils import Cluster

    with loopback_only():
        node = {"num_cpus": 1, "object_store_memory": 96 << 20, "include_dashboard": False}
        cluster = started(lambda: Cluster(initialize_head=True, head_node_args=node), timeout=120)
        started(lambda: cluster.add_node(num_cpus=1, object_store_memory=96 << 20), timeout=120)
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        told = seen(sys.argv[1])
        Path(sys.argv[2]).write_text(json.dumps(told))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
