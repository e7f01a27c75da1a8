"""`python -m tierflow.launch` with one worker, and its options; nothing here needs Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tierflow import errors
from tierflow.launch.job import run
from tierflow.launch.options import Job, parse
from tierflow.launch.process import WorkerProcess, how_it_ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the launcher needs Linux or macOS")


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def launched(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tierflow.launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, **how)  # type: ignore[call-overload]


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody has waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_script_gets_its_arguments_and_input(tmp_path: Path) -> None:
    text = "import sys, helper; print(__name__, sys.argv[1:], input(), helper.HERE)"
    (tmp_path / "helper.py").write_text("HERE = 'beside the script'")
    result = launched("--cpu", script(tmp_path, text), "--num-workers", "7", "-x", input="typed\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "__main__ ['--num-workers', '7', '-x'] typed beside the script\n"


def test_options_reach_the_accelerator(tmp_path: Path) -> None:
    text = "import tierflow; a = tierflow.Accelerator(); print(a.device, a.mixed_precision, a.num_processes, a.gather_object([1]))"
    assert launched("--cpu", "--mixed_precision", "fp16", script(tmp_path, text)).stdout == "cpu fp16 1 [1]\n"
    assert launched("--gpu_ids", "2", script(tmp_path, text)).stdout == "gpu:2 None 1 [1]\n"


def test_a_module_is_run_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "job.py").write_text("import sys; print(__name__, __package__, sys.argv[1:])")
    assert launched("--module", "package.job", "--flag", cwd=tmp_path).stdout == "__main__ package ['--flag']\n"


def test_the_exit_status_is_that_of_the_script(tmp_path: Path) -> None:
    result = launched(script(tmp_path, "raise SystemExit(7)"))
    assert result.returncode == 7 and "the worker ended with exit status 7" in result.stderr
    result = launched(script(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert result.returncode == 137 and "the worker was killed by SIGKILL" in result.stderr


def test_a_worker_is_started_again_where_that_is_asked_for(tmp_path: Path) -> None:
    text = "import os, sys; print('attempt', os.environ['TIERFLOW_RESTART_COUNT']); sys.exit(os.environ['TIERFLOW_RESTART_COUNT'] < '2')"
    result = launched("--max_restarts", "2", script(tmp_path, text))
    assert result.returncode == 0 and result.stdout == "attempt 0\nattempt 1\nattempt 2\n"
    assert "restart 2 of 2" in result.stderr
    result = launched("--max_restarts", "1", script(tmp_path, text))
    assert result.returncode == 1 and result.stdout == "attempt 0\nattempt 1\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_launcher(tmp_path: Path, how: signal.Signals) -> None:
    path = script(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tierflow.launch", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as launcher:
        assert launcher.stdout is not None
        worker = int(launcher.stdout.readline())
        assert is_running(worker)
        launcher.send_signal(how)
        launcher.wait(20)
    deadline = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def test_output_is_kept_and_passed_on(tmp_path: Path) -> None:
    path = script(tmp_path, "import sys\nfor i in range(99): print(i)\nprint('no line end', end='', file=sys.stderr)")
    lines: list[tuple[str, str]] = []
    worker = WorkerProcess(Job(path), 0, Job(path).environment(0, 0, 1, 0), None, lambda *line: lines.append(line))  # type: ignore[arg-type]
    assert worker.wait() == 0
    assert [text for stream, text in lines if stream == "stdout"] == [f"{i}\n" for i in range(99)]
    assert ("stderr", "no line end") in lines
    assert len(worker.log.splitlines()) <= 41 and "98" in worker.log


def test_a_worker_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierflow.launch.process.END_SECS", 0.3)
    path = script(tmp_path, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)")
    lines: list[str] = []
    worker = WorkerProcess(Job(path), 0, Job(path).environment(0, 0, 1, 0), None, lambda _, line: lines.append(line))  # type: ignore[arg-type]
    while not lines:
        time.sleep(0.01)
    worker.stop()
    assert how_it_ended(worker.wait()) == "was killed by SIGKILL"


def test_spellings_of_both_launchers() -> None:
    ours = parse(["--num-workers", "3", "--adapters", "0,1", "--max-restarts", "2", "x.py", "-a", "b"])
    theirs = parse(["--multi_gpu", "--num_machines", "1", "--num_processes", "3", "--gpu_ids", "0,1", "--max_restarts", "2", "x.py", "-a", "b"])
    assert ours == theirs == Job("x.py", ["-a", "b"], n_workers=3, adapters=["0", "1"], max_restarts=2)
    assert parse(["-m", "pkg.job"]).is_module and parse(["--gpu_ids", "all", "x.py"]).adapters == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-workers", "0", "x.py"], "--num-workers 0"),
        (["--cpu", "--adapters", "0", "x.py"], "--cpu excludes --adapters"),
        (["--adapters", "0,b", "x.py"], "expected numbers"),
        (["--num_machines", "2", "x.py"], "name it with --address"),
        (["--max_restarts", "-1", "x.py"], "negative"),
    ],
)
def test_bad_options(argv: list[str], message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        parse(argv)


def test_two_workers_on_one_adapter_are_refused() -> None:
    with pytest.raises(errors.BudgetInUseError, match="names an adapter twice"):
        run(parse(["--num-workers", "2", "--adapters", "1,1", __file__]))


def test_several_workers_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.MissingPackageError, match="pip install ray"):
        run(parse(["--num-workers", "2", __file__]))


def test_files_that_are_not_there() -> None:
    with pytest.raises(errors.UsageError, match="nothing.py: no such script"):
        run(parse(["--num-workers", "2", "nothing.py"]))
    with pytest.raises(errors.UsageError, match="--working-dir /no/where: no such folder"):
        run(parse(["--working-dir", "/no/where", "x.py"]))
