"""Several workers on a Ray cluster: ranks, gathering, and workers that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_launch import is_running, launched, script

from tierflow import errors
from tierflow.launch.job import run
from tierflow.launch.options import parse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the launcher needs Linux or macOS")

GATHER = """
import json, sys, tierflow
accelerator = tierflow.Accelerator(cpu=True)
loader = accelerator.prepare(tierflow.DataLoader(range(11), batch_size=2))
seen = [i for batch in loader for i in accelerator.gather_for_metrics(batch).tolist()]
ranks = accelerator.gather_object([(accelerator.process_index, accelerator.local_process_index, accelerator.num_processes)])
accelerator.print(json.dumps([seen, ranks, accelerator.broadcast(sys.argv[1:] if accelerator.is_main_process else None)]))
"""


@pytest.mark.parametrize("n", [2, 3])
def test_workers_share_the_work(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], n: int) -> None:
    run(parse(["--num_processes", str(n), script(tmp_path, GATHER), "an argument"]))
    out, err = capfd.readouterr()
    assert json.loads(out) == [list(range(11)), [[rank, rank, n] for rank in range(n)], ["an argument"]]
    assert err == ""


def test_a_worker_that_dies_ends_the_job_with_its_log(cluster: Any, tmp_path: Path) -> None:
    text = """
import os, sys, tierflow
accelerator = tierflow.Accelerator(cpu=True)
accelerator.wait_for_everyone()
if accelerator.process_index == 1:
    print("what came before", file=sys.stderr)
    os.kill(os.getpid(), 9)
accelerator.wait_for_everyone()
"""
    started = time.monotonic()
    with pytest.raises(errors.WorkerDiedError, match="worker 1 was killed by SIGKILL; its last lines:\nwhat came before") as caught:
        run(parse(["--num-workers", "2", script(tmp_path, text)]))
    assert (caught.value.rank, caught.value.exit_code) == (1, -9)
    assert time.monotonic() - started < 30


def test_the_first_failure_is_the_one_that_is_told(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """
import tierflow
accelerator = tierflow.Accelerator(cpu=True)
accelerator.wait_for_everyone()
if accelerator.process_index == 1:
    raise KeyError("no such column")
accelerator.gather_object([1])
"""
    with pytest.raises(errors.WorkerDiedError, match="(?s)worker 1 ended with exit status 1.*KeyError: 'no such column'"):
        run(parse(["--num-workers", "2", script(tmp_path, text)]))
    assert "rank 0 waits in gather_object for rank 1, which ended with exit status 1" in capfd.readouterr().err


def test_nobody_waits_for_a_worker_that_is_done(cluster: Any, tmp_path: Path) -> None:
    text = "import tierflow; a = tierflow.Accelerator(cpu=True); a.is_main_process or a.wait_for_everyone()"
    with pytest.raises(errors.WorkerDiedError, match="(?s)worker 1 .*rank 1 waits in wait_for_everyone for rank 0, which has ended"):
        run(parse(["--num-workers", "2", script(tmp_path, text)]))


def test_all_workers_start_again_where_that_is_asked_for(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """
import os, tierflow
accelerator = tierflow.Accelerator(cpu=True)
attempt = os.environ["TIERFLOW_RESTART_COUNT"]
accelerator.print("begun", attempt)
accelerator.wait_for_everyone()
if attempt == "0" and accelerator.process_index == 1:
    os.abort()
print("ended", accelerator.gather_object([accelerator.process_index]))
"""
    run(parse(["--num-workers", "2", "--max-restarts", "1", script(tmp_path, text)]))
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["begun 0", "begun 1", "ended [0, 1]", "ended [0, 1]"]
    assert "worker 1 was killed by SIGABRT" in err and "restart 1 of 1" in err


def test_a_wait_for_a_worker_has_a_deadline(cluster: Any, tmp_path: Path) -> None:
    text = """
import time, tierflow
accelerator = tierflow.Accelerator(cpu=True, timeout=0.5)
if accelerator.process_index:
    time.sleep(30)
accelerator.wait_for_everyone()
"""
    with pytest.raises(errors.WorkerDiedError, match="(?s)worker 0 .*DeadlineError: rank 0 waited 0.5 s in wait_for_everyone for rank 1"):
        run(parse(["--num-workers", "2", script(tmp_path, text)]))


def test_a_cluster_without_room(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.ClusterError, match="no room for 9 workers .* within 3 s: the cluster has 4"):
        run(parse(["--num-workers", "9", "--timeout", "3", script(tmp_path, "")]))


def test_an_address_where_nothing_listens(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    result = launched("--num-workers", "2", "--address", address, script(tmp_path, ""))
    assert result.returncode == 1 and f"no Ray cluster answers at {address}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_an_address_where_something_else_listens(tmp_path: Path, mute_server: str) -> None:
    pytest.importorskip("ray")
    result = launched("--num-workers", "2", "--timeout", "4", "--address", mute_server, script(tmp_path, ""))
    assert result.returncode == 1 and f"what listens at {mute_server} gave no answer" in result.stderr


def test_a_cluster_by_its_address(cluster: Any, tmp_path: Path) -> None:
    address = cluster.get_runtime_context().gcs_address
    result = launched("--num-workers", "2", "--address", address, script(tmp_path, GATHER))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0] == list(range(11))


@pytest.mark.long
def test_a_folder_is_sent_to_the_machines(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script(tmp_path, "import helper; print(helper.HERE)")
    (tmp_path / "helper.py").write_text("import os; HERE = os.path.dirname(os.path.abspath(__file__))")
    result = launched("--num-workers", "2", "--working-dir", str(tmp_path), "script.py")
    assert result.returncode == 0, result.stderr
    assert all("working_dir" in line and str(tmp_path) not in line for line in result.stdout.splitlines())
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_launcher_of_several(tmp_path: Path, how: signal.Signals) -> None:
    """Neither a worker nor a process of the cluster that was started for the job."""
    pytest.importorskip("ray")
    text = "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(100)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tierflow.launch", "--num-workers", "2", script(tmp_path, text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for _ in range(2) for pid in launcher.stdout.readline().split()]
        launcher.send_signal(how)
        launcher.wait(60)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.1)
