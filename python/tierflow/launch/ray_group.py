"""Several workers as actors of a Ray cluster, and the actor at which they meet.

An actor starts its worker's process and passes on what that prints, so that a script which crashes takes neither its actor nor its last words with it.
The first worker that dies ends the job: the others learn in their next operation that they wait in vain, and are ended.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ..distributed.channel import GRACE_SECS
from ..distributed.rendezvous import Rendezvous
from ..errors import ClusterError, UsageError, WorkerDiedError
from ..ray.cluster import connected, own_errors
from .options import Job
from .process import WorkerProcess, how_it_ended

# How long the other workers have to end by themselves, and to say why, after one has died.
LAST_WORDS_SECS = 5.0

# ("line", stream, text) as it comes, then ("ended", exit status, last lines).
Event = tuple[str, Any, str]


class Desk:
    """The actor at which workers meet."""

    def __init__(self, size: int) -> None:
        self._rendezvous = Rendezvous(size)

    def exchange(self, rank: int, turn: int, operation: str, value: bytes, timeout: float) -> list[bytes]:
        return self._rendezvous.exchange(rank, turn, operation, value, timeout)

    def leave(self, rank: int, how: str) -> None:
        self._rendezvous.leave(rank, how)


class Worker:
    """The actor of one worker."""

    def machine(self) -> str:
        """Which machine it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def run(self, job: Job, rank: int, environment: dict[str, str], folder: str, desk: Any) -> Iterator[Event]:
        """Runs the worker to its end; what happens comes one by one."""
        import ray

        def exchange(rank: int, turn: int, operation: str, value: bytes, timeout: float) -> list[bytes]:
            with own_errors(operation):
                answer = desk.exchange.remote(rank, turn, operation, value, timeout)
                return list(ray.get(answer, timeout=timeout + GRACE_SECS / 2))

        if job.working_dir is None and os.path.isdir(folder):
            os.chdir(folder)
        events: queue.Queue[Event] = queue.Queue()
        worker = WorkerProcess(job, rank, environment, exchange, lambda stream, line: events.put(("line", stream, line)))
        threading.Thread(target=lambda: events.put(("ended", worker.wait(), worker.log)), daemon=True).start()
        try:
            while True:
                event = events.get()
                yield event
                if event[0] == "ended":
                    return
        finally:
            worker.stop()


def run_on_ray(job: Job, attempt: int) -> None:
    """Runs a job over `job.n_workers` actors."""
    sent = {"runtime_env": {"working_dir": job.working_dir}} if job.working_dir is not None else {}
    with connected(job.address, job.n_workers, job.timeout, job.object_store_memory, **sent) as ray:
        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=2 * job.n_workers + 2).remote(job.n_workers)
        workers = start_workers(ray, job)
        try:
            watch(ray, job, attempt, desk, workers)
        finally:
            for actor in [desk, *(worker for worker, _ in workers)]:
                ray.kill(actor)


def start_workers(ray: Any, job: Job) -> list[tuple[Any, str]]:
    """The actors with their machines, in order of ranks: those of one machine follow each other."""
    kind = ray.remote(Worker).options(num_cpus=1, max_concurrency=2)
    actors = [kind.remote() for _ in range(job.n_workers)]
    try:
        machines = ray.get([actor.machine.remote() for actor in actors], timeout=job.timeout)
    except ray.exceptions.GetTimeoutError as error:
        there_are = ray.cluster_resources().get("CPU", 0)
        raise ClusterError(
            f"no room for {job.n_workers} workers with one CPU each within {job.timeout:g} s: "
            f"the cluster has {there_are:g}; use fewer workers, or add machines"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"workers could not be started: {error}") from error
    return sorted(zip(actors, machines, strict=True), key=lambda placed: machines.index(placed[1]))


def watch(ray: Any, job: Job, attempt: int, desk: Any, workers: list[tuple[Any, str]]) -> None:
    """Runs the workers and prints what they print, until all have ended well or one has not."""
    events: queue.Queue[tuple[int, Event]] = queue.Queue()
    machines = [machine for _, machine in workers]
    for rank, (actor, machine) in enumerate(workers):
        local_rank, local_size = machines[:rank].count(machine), machines.count(machine)
        if job.adapters and local_rank >= len(job.adapters):
            raise UsageError(f"--adapters {','.join(job.adapters)}: a machine has {local_size} workers; name as many, or start fewer")
        environment = job.environment(rank, local_rank, local_size, attempt)
        stream = actor.run.options(num_returns="streaming").remote(job, rank, environment, os.getcwd(), desk)
        threading.Thread(target=follow, args=(ray, rank, stream, events), daemon=True).start()
    failure: WorkerDiedError | None = None
    running = set(range(len(workers)))
    while running:
        try:
            rank, (kind, what, text) = events.get(timeout=None if failure is None else LAST_WORDS_SECS)
        except queue.Empty:
            break
        if kind == "line":
            print(text, end="", file=sys.stdout if what == "stdout" else sys.stderr, flush=True)
            continue
        running.discard(rank)
        how = "has ended" if what == 0 else how_it_ended(what) if isinstance(what, int) else str(what)
        ray.get(desk.leave.remote(rank, how), timeout=job.timeout)
        if what != 0 and failure is None:
            failure = died(rank, how, what if isinstance(what, int) else None, text)
    if failure is not None:
        raise failure


def follow(ray: Any, rank: int, stream: Any, events: queue.Queue[tuple[int, Event]]) -> None:
    """Passes on the events of one worker; the end of its actor is one, too."""
    try:
        for reference in stream:
            events.put((rank, ray.get(reference)))
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()
        events.put((rank, ("ended", f"was lost with its Ray actor ({reason[0] if reason else 'no reason given'})", "")))
    except Exception as error:
        events.put((rank, ("ended", f"could not be run: {error}", "")))


def died(rank: int, how: str, exit_code: int | None, log: str) -> WorkerDiedError:
    shown = f"; its last lines:\n{log.rstrip()}" if log.strip() else ", and printed nothing"
    return WorkerDiedError(f"worker {rank} {how}{shown}", rank=rank, exit_code=exit_code, log=log)
