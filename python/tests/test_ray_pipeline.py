"""One model over the workers of a Ray cluster of two nodes: the answers of one engine, its plan, and workers that die."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A cluster of two nodes cannot be in the process of another one.
SCRIPT = Path(__file__).parent / "two_nodes.py"
GREEDY = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def told(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `two_nodes.py` saw, all in one cluster: to start one takes longest."""
    pytest.importorskip("ray")
    seen = tmp_path_factory.mktemp("two nodes") / "seen.json"
    command = [sys.executable, str(SCRIPT), str(models / "tiny.gguf"), str(seen)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(seen.read_text())


def test_two_nodes_give_the_answers_of_one_engine(told: Any, models: Path) -> None:
    import tierflow

    with tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=64) as engine:
        assert told["text"] == engine.generate([1, 2, 3], **GREEDY)
        assert told["streamed"] == told["text"]
        assert told["long"] == engine.generate([token % 90 for token in range(40)], **GREEDY)
        assert told["tokens"] == engine.tokenize("one model")
        assert told["logits"] == [row.tobytes().hex() for row in engine.logits([5, 6, 7])]
    assert len(set(told["nodes"])) == 2, "a node for each worker"


def test_the_plan_says_who_computes_what_and_how_fast(told: Any) -> None:
    plan = told["plan"]
    layers = [stage["layers"] for stage in plan["stages"]]
    assert layers[0][0] == 0 and layers[0][1] == layers[1][0] and all(first < end for first, end in layers)
    seconds = sum(stage["forecast"]["decode"]["secs"] for stage in plan["stages"])
    way = plan["links"][0]
    assert plan["prediction"]["token_secs"] > seconds + way["latency_secs"] > 0
    assert way["bytes_per_sec"] > 0
    first = told["printed"].splitlines()
    assert "over 2 workers, 64 positions" in first[0] and "predicted: " in first[-1]
    assert told["before loading"] == "ClosedError: the engine is only planned; call load()"


def test_what_goes_wrong_is_named(told: Any) -> None:
    assert told["too long"].startswith("ContextFullError: ")
    assert told["no room"].startswith("DoesNotFitError: ") and "worker 1" in told["no room"]
    assert told["no nodes"].startswith("ClusterError: no room for 3 workers")
    kind, _, reason = told["died"].partition(": ")
    assert (kind, told["died rank"]) == ("WorkerDiedError", 1) and "worker 1 (127.0.0.1)" in reason, told["died"]
    assert told["died again"].startswith("WorkerDiedError: ")
    assert told["first died"].startswith("WorkerDiedError: ") and told["first died rank"] == 0
    assert told["hung"] == "DeadlineError: worker 1 (127.0.0.1) gave no answer within 0.5 s"
    assert told["closed"].startswith("ClosedError: ")
    assert told["left running"] == []


def test_arguments_of_whole_models_are_refused() -> None:
    pytest.importorskip("ray")
    import tierflow.ray
    from tierflow import errors

    for arguments, reason in [
        ({"num_workers": 0}, "num_workers"),
        ({"device_map": {"": 0}}, "device_map"),
        ({"max_memory": ["1GiB"]}, "has 1 budgets for 2 workers"),
        ({"ctx_size": -1}, "ctx_size"),
    ]:
        with pytest.raises(errors.UsageError, match=reason):
            tierflow.ray.PipelineEngine("model.gguf", **arguments)


def test_a_cluster_that_is_started_here_listens_on_the_loopback_alone(cluster: Any) -> None:
    (node,) = cluster.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    socket.create_connection(("127.0.0.1", node["NodeManagerPort"]), timeout=10).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return
        outside = probe.getsockname()[0]
    if not outside.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((outside, node["NodeManagerPort"]), timeout=10)
