"""The workers of one model over several machines: each has a stage, the layers that it computes.

The first has an engine, and carries what that asks later layers for to the other workers, as objects of Ray's.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import statistics
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _tierflow
from ..errors import ClosedError, DeadlineError, EngineError, TierflowError, WorkerDiedError
from .cluster import first_line, own_errors

# Of a link: round trips of next to nothing, and how large a message is whose bytes count.
N_ROUND_TRIPS = 20
N_LARGE = 4
LARGE_BYTES = 4 << 20


class Peer(NamedTuple):
    """A worker, as others know it."""

    name: str
    actor: Any


class StageWorker:
    """The actor of one worker."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._stage: Any = None
        self._jobs: dict[int, Job] = {}
        self._peers: list[Peer] = []
        self._deadline = 0.0
        self._failure: TierflowError | None = None

    # Before anything is loaded.

    def describe(self) -> dict[str, Any]:
        """Which machine it is on, and what Ray lent to it."""
        import ray

        boot = Path("/proc/sys/kernel/random/boot_id")
        machine = f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"
        return {
            "machine": machine,
            "address": ray.util.get_node_ip_address(),
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "cores": os.cpu_count() or 1,
            "gpus": ray.get_gpu_ids(),
        }

    def devices(self, options: str) -> dict[str, Any]:
        """This machine's devices with their rates for the model."""
        return dict(json.loads(_tierflow.devices_for(options)))

    def receive(self, values: np.ndarray) -> int:
        """Takes hidden states, for those who measure how long that takes."""
        return len(values)

    def measure_link(self, peer: Peer) -> dict[str, float]:
        """How long hidden states take to a peer: the least of them, and the bytes of large ones."""
        import ray

        def secs(n_bytes: int) -> float:
            values = np.zeros(n_bytes // 4, "<f4")
            begin = time.perf_counter()
            ray.get(peer.actor.receive.remote(ray.put(values)), timeout=60)
            return time.perf_counter() - begin

        secs(LARGE_BYTES)
        latency = statistics.median(secs(4) for _ in range(N_ROUND_TRIPS))
        large = statistics.median(secs(LARGE_BYTES) for _ in range(N_LARGE))
        return {"latency_secs": latency, "bytes_per_sec": LARGE_BYTES / max(large - latency, 1e-6)}

    def divide(self, machines: list[dict[str, Any]], links: list[dict[str, float]]) -> dict[str, Any]:
        """The layers of each machine, with plans and what is predicted."""
        return dict(json.loads(_tierflow.divide(json.dumps(machines), json.dumps(links))))

    # A later stage.

    def open_stage(self, options: str) -> None:
        """Loads layers that begin with hidden states."""
        self._stage = _tierflow.Stage.open(options)

    def forward(self, asked: Any, hidden: np.ndarray) -> Any:
        """What its layers make of hidden states: hidden states again, logits, or the best tokens of each row."""
        rows, best = self._stage.forward(asked, hidden.astype("<f4", copy=False).tobytes())
        return best if rows is None else np.frombuffer(rows, "<f4")

    # The first stage.

    def open_engine(self, options: str, peers: list[Peer], deadline: float) -> str:
        """Loads the first layers, behind which these peers compute: what is known of the model."""
        self._peers, self._deadline = peers, deadline
        self._engine = _tierflow.Engine.open(options)
        threading.Thread(target=self._carry, name="tierflow-stages", daemon=True).start()
        return self._engine.facts()

    def _carry(self) -> None:
        """Brings requests to the other workers and answers back, until the engine is closed."""
        try:
            while (request := self._engine.next_request()) is not None:
                try:
                    answer = self._through(*request)
                except Exception as error:
                    self._failure = error if isinstance(error, TierflowError) else EngineError(str(error))
                    self._engine.fail_request(str(error))
                else:
                    is_best = isinstance(answer, list)
                    self._engine.answer_request(None if is_best else answer.tobytes(), answer if is_best else [])
        except ClosedError:
            pass

    def _through(self, asked: Any, hidden: bytearray) -> Any:
        """One forward through all later stages. Hidden states go from worker to worker; only the answer comes here."""
        import ray

        tokens, sequences, positions, _, _ = asked
        for_all = (tokens, sequences, positions, list(range(len(tokens))), 0)
        value = ray.put(np.frombuffer(hidden, "<f4"))
        answers = []
        for place, peer in enumerate(self._peers):
            is_last = place + 1 == len(self._peers)
            value = peer.actor.forward.remote(asked if is_last else for_all, value)
            answers.append(value)
        try:
            return ray.get(value, timeout=self._deadline)
        except Exception as error:
            raise self._cause(answers, error) from error

    def _cause(self, answers: list[Any], error: Exception) -> Exception:
        """Which worker is at fault: the first that gave no answer."""
        import ray

        for place, (peer, answer) in enumerate(zip(self._peers, answers, strict=True), start=1):
            try:
                ready, _ = ray.wait([answer], timeout=0)
                if not ready:
                    return DeadlineError(f"{peer.name} gave no answer within {self._deadline:g} s")
                with own_errors(peer.name):
                    ray.get(answer, timeout=self._deadline)
            except WorkerDiedError as died:
                return WorkerDiedError(str(died), rank=place)
            except TierflowError as other:
                return EngineError(f"{peer.name}: {other}")
            except Exception as other:
                return EngineError(f"{peer.name}: {first_line(other)}")
        return error

    # What the engine is asked for: each in a thread, since nobody shall wait here for long.

    def begin(self, number: int, method: str, *arguments: Any) -> None:
        """Begins to answer a call of the engine's."""
        self._jobs[number] = Job(self._engine, method, arguments)

    def take(self, number: int, wait: float) -> list[tuple[str, Any]]:
        """What has come of it since; it waits so long for the first."""
        events = self._jobs[number].events(wait)
        if any(self._is_failure(*event) for event in events):
            events = [("error", self._failure)]
        if events and events[-1][0] in ("error", "end"):
            self._jobs.pop(number).close()
        return events

    def _is_failure(self, kind: str, value: Any) -> bool:
        """Whether an event says that a later stage failed. What the engine says is a text: whose fault it was is known here."""
        reason = str(self._failure)
        return self._failure is not None and (
            (kind == "error" and reason in str(value)) or (kind == "piece" and json.dumps(reason, ensure_ascii=False)[1:-1] in value)
        )

    def end(self, number: int) -> None:
        """Ends it before its next token."""
        if job := self._jobs.pop(number, None):
            job.close()

    def close(self) -> None:
        """Gives the memory back."""
        for job in list(self._jobs.values()):
            job.close()
        if self._engine is not None:
            self._engine.close()
        if self._stage is not None:
            self._stage.close()


class Job:
    """A call of the engine's, on a thread of its own."""

    def __init__(self, engine: Any, method: str, arguments: tuple[Any, ...]) -> None:
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._answer: Any = None
        self._is_closed = False
        threading.Thread(target=self._run, args=(engine, method, arguments), daemon=True).start()

    def _run(self, engine: Any, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            if method != "stream":
                self._events.put(("value", getattr(engine, method)(*arguments)))
            else:
                self._answer = engine.stream(*arguments)
                self._events.put(("status", self._answer.status))
                while not self._is_closed and (piece := self._answer.next()) is not None:
                    self._events.put(("piece", piece))
                self._answer.close()
            self._events.put(("end", None))
        except Exception as error:
            self._events.put(("error", error))

    def events(self, wait: float) -> list[tuple[str, Any]]:
        try:
            events = [self._events.get(timeout=wait)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def close(self) -> None:
        self._is_closed = True
        if self._answer is not None:
            self._answer.close()
