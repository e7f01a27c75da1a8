"""A job from its start to its end, with its restarts."""

from __future__ import annotations

import sys
from pathlib import Path

from ..distributed.channel import alone
from ..errors import BudgetInUseError, UsageError, WorkerDiedError
from .options import Job
from .process import WorkerProcess, how_it_ended


def run(job: Job) -> None:
    """Runs a job, again where a worker dies and `--max-restarts` allows it."""
    check_files(job)
    for attempt in range(job.max_restarts + 1):
        try:
            return run_alone(job, attempt) if job.n_workers == 1 and job.address is None else run_group(job, attempt)
        except WorkerDiedError as error:
            if attempt == job.max_restarts:
                raise
            print(f"tierflow launch: {error}\ntierflow launch: restart {attempt + 1} of {job.max_restarts}", file=sys.stderr)


def check_files(job: Job) -> None:
    """Refuses what is not there before anything is started; a script may be on the cluster's machines alone."""
    if job.working_dir is not None and not Path(job.working_dir).is_dir():
        raise UsageError(f"--working-dir {job.working_dir}: no such folder")
    script = Path(job.working_dir or ".") / job.target
    if not job.is_module and job.address is None and not script.is_file():
        raise UsageError(f"{script}: no such script; --module takes the name of a module")


def run_alone(job: Job, attempt: int) -> None:
    """One worker, whose input and output are the launcher's."""
    worker = WorkerProcess(job, 0, job.environment(0, 0, 1, attempt), alone, None)
    try:
        code = worker.wait()
    finally:
        worker.stop()
    if code != 0:
        raise WorkerDiedError(f"the worker {how_it_ended(code)}", exit_code=code)


def run_group(job: Job, attempt: int) -> None:
    """Several workers, on a Ray cluster."""
    if job.adapters and len(set(job.adapters)) < len(job.adapters):
        raise BudgetInUseError(f"--adapters {','.join(job.adapters)} names an adapter twice: two workers would plan with its memory")
    from .ray_group import run_on_ray

    run_on_ray(job, attempt)
