"""The server of a replica, and the replica in front of it; `served.py` stands for the program, except where its name is given."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_launch import is_running

from tierflow import errors
from tierflow.ray.server import Server
from tierflow.ray.service import app, service

PROGRAM = str(Path(__file__).parent / "served.py")


def ask(address: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(address + path, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text[:1] == b"{" else text


def test_a_server_is_started_and_ended() -> None:
    server = Server(PROGRAM, "model.gguf", ["--ctx-size", "64"], 30)
    status, told = ask(server.address, "/v1/models")
    assert status == 200 and told["arguments"] == ["serve", "model.gguf", "--port", "0", "--ctx-size", "64"]
    server.stop()
    assert not is_running(told["pid"])
    with pytest.raises(errors.WorkerDiedError):
        server.check()


def test_a_server_that_fails_says_why() -> None:
    with pytest.raises(errors.WorkerDiedError, match="(?s)exit status 1.*broken.gguf is no model"):
        Server(PROGRAM, "broken", [], 30)
    with pytest.raises(errors.DeadlineError, match="not ready within 1 s"):
        Server(PROGRAM, "slow", [], 1)
    with pytest.raises(errors.UsageError, match="'no-such-program' is not on this machine"):
        Server("no-such-program", "model", [], 1)


def test_a_server_ends_with_its_replica() -> None:
    program = f"""
import os, urllib.request
from tierflow.ray.server import Server
server = Server({PROGRAM!r}, "model", [], 30)
print(urllib.request.urlopen(server.address + "/").read().decode(), flush=True)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60, env=environment)
    pid, deadline = json.loads(result.stdout)["pid"], time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.05)


def test_bad_numbers_of_replicas() -> None:
    with pytest.raises(errors.UsageError, match="expected 1 ≤ min_replicas ≤ max_replicas"):
        service("model", min_replicas=3, max_replicas=2)


def test_options_of_a_command_line() -> None:
    pytest.importorskip("ray.serve")
    assert app({"model": "7b.gguf", "max_replicas": "2", "target_ongoing_requests": "1.5"}) is not None
    with pytest.raises(errors.UsageError, match="max_replicas 0"):
        app({"model": "7b.gguf", "max_replicas": "0"})


@contextmanager
def running(**how: Any) -> Iterator[str]:
    """The address of Ray Serve with a service."""
    serve = pytest.importorskip("ray.serve")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(service(num_cpus=0.5, startup_timeout=60, **how), name="tests")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


class TestOneServer:
    """Tests that share Ray Serve with one server, which ends after them."""

    @pytest.fixture(scope="class")
    def front(self, cluster: Any) -> Iterator[str]:
        with running(model="model.gguf", program=PROGRAM) as address:
            yield address

    def test_requests_are_passed_on(self, front: str) -> None:
        status, told = ask(front, "/v1/models?limit=2")
        assert status == 200 and told["path"] == "/v1/models?limit=2"
        assert told["arguments"] == ["serve", "model.gguf", "--port", "0", "--device", "cpu"]
        assert ask(front, "/nothing")[0] == 404
        assert ask(front, "/v1/x", b"{}", {"Authorization": "Bearer k"}) == (200, {"got": "{}", "key": "Bearer k"})

    def test_streams_stay_streams(self, front: str) -> None:
        with urllib.request.urlopen(urllib.request.Request(front + "/stream", data=b"{}"), timeout=60) as answer:
            for i in range(3):
                # A piece is here before the server is asked for the next one.
                assert [answer.readline(), answer.readline()] == [b"data: %d\n" % i, b"\n"]
                assert ask(front, "/go")[0] == 200
            assert answer.read() == b""

    def test_a_server_that_dies_is_replaced(self, front: str) -> None:
        first = ask(front, "/")[1]["pid"]
        status, told = ask(front, "/die")
        assert status == 502 and told["error"]["type"] == "server_error"
        deadline = time.monotonic() + 60
        while True:
            status, told = ask(front, "/")
            if status == 200:
                break
            assert time.monotonic() < deadline, "no replica takes its place"
            time.sleep(0.5)
        assert told["pid"] != first


@pytest.mark.long
def test_replicas_follow_the_queue(cluster: Any) -> None:
    """More requests than one replica shall have start others; all are answered."""
    how = {"model": "model.gguf", "program": PROGRAM, "max_replicas": 3, "target_ongoing_requests": 1, "autoscaling": {"upscale_delay_s": 1}}
    with running(**how) as address, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: ask(address, "/slow"), range(80)))
    assert {status for status, _ in answers} == {200}
    assert len({told["pid"] for _, told in answers}) == 3


def test_the_program_behind_ray_serve(cluster: Any) -> None:
    """A chat by OpenAI's API is answered as by the program alone."""
    program, model = os.environ.get("TIERFLOW_PROGRAM"), os.environ.get("TIERFLOW_SMOLLM2")
    if not program or not model:
        pytest.skip("TIERFLOW_PROGRAM and TIERFLOW_SMOLLM2 are not set; `cargo xtask python` sets them")
    messages = [{"role": "user", "content": "Name three colours."}]
    body = json.dumps({"messages": messages, "max_tokens": 12, "temperature": 0}).encode()
    arguments = ["--device", "cpu", "--ctx-size", "256"]
    alone = Server(program, model, arguments, 120)
    status, expected = ask(alone.address, "/v1/chat/completions", body)
    alone.stop()
    assert status == 200 and expected["choices"][0]["message"]["content"]
    with running(model=model, program=program, arguments=arguments) as address:
        status, told = ask(address, "/v1/chat/completions", body)
    assert (status, told["choices"]) == (200, expected["choices"])
