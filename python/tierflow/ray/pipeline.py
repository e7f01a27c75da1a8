"""One model over several machines, for models that none of them holds: each computes some of the layers."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from .._options import options_of
from ..engine import Engine
from ..errors import ArgumentError, ClosedError, ClusterError, DeadlineError, UsageError, WorkerDiedError
from ..plans import Plan
from ..streams import OpenStreams
from .cluster import DEFAULT_TIMEOUT_SECS, connected, own_errors
from .stages import Peer, StageWorker

# Options of an engine that concern one machine's plan alone, or that the division decides.
NOT_FOR_STAGES = ("device_map", "no_split_module_classes", "n_gpu_layers", "n_cpu_moe", "embedding", "machine")
# How long a worker is asked to wait for the next piece of an answer.
STEP_SECS = 1.0
# A worker that does not even say that there is nothing yet.
GRACE_SECS = 30.0


class PipelinePlan:
    """Which layers of a model each worker computes, where their weights are, and how fast that should be. Prints all of it."""

    def __init__(self, model: str, told: dict[str, Any]) -> None:
        self._model = model
        self._told = told

    def to_dict(self) -> dict[str, Any]:
        """All of it: `stages` with their `layers`, `plan` and `forecast`, `links` between them, `ctx_size` and `prediction`."""
        return dict(self._told)

    @property
    def layers(self) -> list[range]:
        """The layers of each worker."""
        return [range(*stage["layers"]) for stage in self._told["stages"]]

    @property
    def prediction(self) -> dict[str, float]:
        """`tokens_per_sec` of an answer, `prompt_tokens_per_sec`, and the seconds behind them, with the ways between workers."""
        return dict(self._told["prediction"])

    def __str__(self) -> str:
        stages, links, prediction = self._told["stages"], self._told["links"], self._told["prediction"]
        lines = [f"{self._model} over {len(stages)} workers, {self._told['ctx_size']} positions"]
        for place, stage in enumerate(stages):
            first, end = stage["layers"]
            lines.append(f"{stage['name']}: layers {first} to {end - 1}, {1e3 * stage['forecast']['decode']['secs']:.2f} ms per token")
            lines += [f"  {line}" for line in stage["text"].rstrip().splitlines()]
            if place < len(links):
                link = links[place]
                lines.append(f"  then {1e3 * link['latency_secs']:.2f} ms and {link['bytes_per_sec'] / 1e6:.0f} MB/s to the next")
        speeds = (prediction["tokens_per_sec"], prediction["prompt_tokens_per_sec"])
        lines.append("predicted: {:.3g} tokens/s of an answer, {:.3g} tokens/s of a prompt".format(*speeds))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<tierflow.ray.PipelinePlan\n{self}>"


class PipelineEngine(Engine):
    """A model over `num_workers` workers of a Ray cluster, as one `tierflow.Engine`: everything that generates is the same, and so are
    its answers.

    Each worker computes some of the layers, on a node of its own where there are as many. They are divided by the planner: for the devices
    of each worker, their budgets and rates, and the way between workers, which is measured. The model's files are on every machine.

    - `address` is the cluster, else that of `RAY_ADDRESS`; without either, one of this machine alone is started.
    - `num_cpus` and `num_gpus` are what Ray lends to each worker. Without a GPU its host computes, unless `device` says otherwise.
    - `max_memory` is for each worker; a list has one for every worker.
    - `load=False` plans only: `plan` can be printed, and `load()` opens the model.
    - `timeout` is the deadline of a wait for the cluster, `load_timeout` that of loading, `forward_timeout` that of one forward.

    Other arguments are those of `tierflow.Engine`, the same for every worker. A worker that dies ends what is under way with
    `WorkerDiedError`; open another engine then.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        num_workers: int = 2,
        *,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        max_memory: Any = None,
        load: bool = True,
        timeout: float = DEFAULT_TIMEOUT_SECS,
        load_timeout: float = 3600.0,
        forward_timeout: float = 300.0,
        **options: Any,
    ) -> None:
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
            raise ArgumentError(f"num_workers: must be a whole number of at least 1, not {num_workers!r}", argument="num_workers")
        if given := [name for name in NOT_FOR_STAGES if name in options]:
            raise UsageError(f"{given[0]}: says what one machine does with a whole model; workers have a part of it")
        budgets = list(max_memory) if isinstance(max_memory, Sequence) and not isinstance(max_memory, str) else [max_memory] * num_workers
        if len(budgets) != num_workers:
            raise ArgumentError(f"max_memory: has {len(budgets)} budgets for {num_workers} workers", argument="max_memory")
        self._recipe = {
            "model": os.fspath(model), "num_workers": num_workers, "address": address, "num_cpus": num_cpus, "num_gpus": num_gpus,
            "max_memory": max_memory, "timeout": timeout, "load_timeout": load_timeout, "forward_timeout": forward_timeout, **options,
        }
        self._given = [{**options, "max_memory": budget} for budget in budgets]
        # Refused before a cluster is asked for anything.
        for each in self._given:
            options_of(model, **each)
        self._streams = OpenStreams()
        self._facts: dict[str, Any] = {}
        self.n_seqs = int(options.get("n_seqs", 1))
        self._native: Any = NotLoaded()
        self._exit = ExitStack()
        self._is_closed = False
        try:
            ray = self._exit.enter_context(connected(address, max(1, round(num_workers * num_cpus)), timeout))
            self._workers = Workers(ray, num_workers, num_cpus, num_gpus, timeout)
            self._exit.callback(self._workers.close)
            self._plan = self._divide()
            if load:
                self.load()
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> Any:
        return _opened_again, (type(self), self._recipe)

    @property
    def plan(self) -> PipelinePlan:  # type: ignore[override]
        """Which layers each worker computes, where their weights are, and how fast that should be."""
        return self._plan

    @property
    def hf_device_map(self) -> dict[str, int | str]:
        """Of several machines there is none: see `plan`."""
        raise UsageError("hf_device_map: says what the devices of one machine have; `plan.layers` says what workers have")

    @property
    def stage_plan(self) -> Plan:
        """The plan of the first worker's layers, as it was loaded."""
        return Plan(self._native.plan())

    def devices(self) -> list[dict[str, Any]]:
        """The devices of all workers, with their limits and rates; each has the name of its `worker`."""
        named = zip(self._workers.names, self._devices, strict=True)
        return [{**device, "worker": name} for name, described in named for device in described["devices"]]

    def _divide(self) -> PipelinePlan:
        """Asks the workers for their devices and the ways between them, and the first for a division."""
        workers, model = self._workers, self._recipe["model"]
        shared = workers.shares
        for place, given in enumerate(self._given):
            given.setdefault("device", workers.device(place))
            if shared[place] > 1:
                given["threads"] = given.get("threads") or max(1, workers.described[place]["cores"] // shared[place])
        asked = [options_of(model, **given) for given in self._given]
        # One after the other: what is measured at the same time on one machine would be too slow.
        self._devices = [workers.ask(place, "devices", options, timeout=self._recipe["load_timeout"]) for place, options in enumerate(asked)]
        for described, n_sharing in zip(self._devices, shared, strict=True):
            for device in described["devices"]:
                if device.get("capacity") and n_sharing > 1:
                    # Workers of one machine share its memory.
                    device["capacity"] //= n_sharing
        links = [workers.ask(place, "measure_link", workers.peers[place + 1]) for place in range(len(workers.peers) - 1)]
        described = zip(workers.names, asked, self._devices, strict=True)
        machines = [{"name": name, "options": json.loads(options), "devices": devices} for name, options, devices in described]
        return PipelinePlan(model, workers.ask(0, "divide", machines, links, timeout=self._recipe["load_timeout"]))

    def load(self) -> None:
        """Loads each worker's layers, all at the same time."""
        if not isinstance(self._native, NotLoaded) or self._is_closed:
            raise ClosedError("the engine is closed; open another one") if self._is_closed else UsageError("the model is loaded already")
        told, workers = self._plan.to_dict(), self._workers
        asked = []
        for given, stage in zip(self._given, told["stages"], strict=True):
            # Exactly what was planned, whatever else is free by now.
            budgets = {device["device"]: device["budget"] for device in stage["plan"]["devices"] if device["budget"] is not None}
            sizes = {"ctx_size": told["ctx_size"], "ubatch_size": told["ubatch_size"], "max_memory": budgets}
            asked.append(json.dumps({**json.loads(options_of(self._recipe["model"], **{**given, **sizes})), "layers": stage["layers"]}))
        deadline = time.monotonic() + self._recipe["load_timeout"]
        later = [workers.begin(place, "open_stage", asked[place]) for place in range(1, len(asked))]
        first = workers.begin(0, "open_engine", asked[0], workers.peers[1:], float(self._recipe["forward_timeout"]))
        for place, reference in enumerate(later, start=1):
            workers.get(place, reference, deadline - time.monotonic())
        self._facts = json.loads(workers.get(0, first, deadline - time.monotonic()))
        self._native = RemoteEngine(workers)

    def close(self) -> None:
        """Ends what runs and the workers."""
        self._is_closed = True
        self._native = NotLoaded(is_closed=True)
        self._exit.close()

    @property
    def is_closed(self) -> bool:
        return self._is_closed


class NotLoaded:
    """What stands in for the engine before it is loaded, and behind its end."""

    def __init__(self, is_closed: bool = False) -> None:
        self._is_closed = is_closed

    def __getattr__(self, name: str) -> Any:
        raise ClosedError("the engine is closed; open another one" if self._is_closed else "the engine is only planned; call load()")


class Workers:
    """The actors, one for each stage."""

    def __init__(self, ray: Any, number: int, num_cpus: float, num_gpus: float, timeout: float) -> None:
        self._ray, self._timeout = ray, timeout
        bundle = {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}
        has_room = lambda node: all(node["Resources"].get(name, 0) >= amount for name, amount in bundle.items())  # noqa: E731
        nodes = [node for node in ray.nodes() if node["Alive"] and has_room(node)]
        strategy = "STRICT_SPREAD" if len(nodes) >= number > 1 else "SPREAD"
        self._group = ray.util.placement_group([bundle] * number, strategy=strategy)
        self._actors: list[Any] = []
        try:
            ready, _ = ray.wait([self._group.ready()], timeout=timeout)
            if not ready:
                raise ClusterError(
                    f"no room for {number} workers with {bundle} each within {timeout:g} s on {len(nodes)} nodes that have "
                    "as much; use fewer workers, ask for less, or add machines"
                )
            scheduling = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
            for place in range(number):
                options = {"num_cpus": num_cpus, "num_gpus": num_gpus or None, "max_concurrency": 64}
                where = scheduling(self._group, placement_group_bundle_index=place)
                self._actors.append(ray.remote(StageWorker).options(scheduling_strategy=where, **options).remote())
            self.names = [f"worker {place}" for place in range(number)]
            self.described = [self.ask(place, "describe") for place in range(number)]
        except BaseException:
            self.close()
            raise
        self.names = [f"worker {place} ({each['address']})" for place, each in enumerate(self.described)]
        self.peers = [Peer(name, actor) for name, actor in zip(self.names, self._actors, strict=True)]
        machines = [each["machine"] for each in self.described]
        self.shares = [machines.count(machine) for machine in machines]

    def device(self, place: int) -> str:
        """The GPU that Ray lent to a worker, or the host."""
        lent = self.described[place]["gpus"]
        return f"gpu:{lent[0]}" if lent else "cpu"

    def begin(self, place: int, method: str, *arguments: Any) -> Any:
        return getattr(self._actors[place], method).remote(*arguments)

    def get(self, place: int, reference: Any, timeout: float | None = None) -> Any:
        """What a worker answers, within the deadline."""
        timeout = self._timeout if timeout is None else max(0.0, timeout)
        name = self.names[place]
        try:
            with own_errors(name):
                ready, _ = self._ray.wait([reference], timeout=timeout)
                if not ready:
                    raise DeadlineError(f"{name} gave no answer within {timeout:g} s")
                return self._ray.get(reference, timeout=timeout)
        except WorkerDiedError as died:
            raise WorkerDiedError(str(died), rank=place) from died

    def ask(self, place: int, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        return self.get(place, self.begin(place, method, *arguments), timeout)

    def close(self) -> None:
        """Ends the actors; Ray takes their memory back with their processes."""
        if not self._ray.is_initialized():
            return
        with suppress(self._ray.exceptions.RayError):
            for actor in self._actors:
                self._ray.kill(actor)
            self._ray.util.remove_placement_group(self._group)


class RemoteEngine:
    """The native engine of the first worker, with the methods of `_tierflow.Engine`."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._numbers = itertools.count()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *arguments: self._call(method, *arguments)

    def _call(self, method: str, *arguments: Any) -> Any:
        answer = RemoteAnswer(self._workers, next(self._numbers), method, arguments)
        return answer.value()

    def stream(self, path: str, body: str) -> RemoteAnswer:
        answer = RemoteAnswer(self._workers, next(self._numbers), "stream", (path, body))
        answer.wait_for_status()
        return answer

    def post(self, path: str, body: str) -> tuple[int, str]:
        """As a stream, so that it can be ended."""
        answer = self.stream(path, body)
        pieces = []
        try:
            while (piece := answer.next()) is not None:
                pieces.append(piece)
        except BaseException:
            answer.close()
            raise
        return answer.status, "".join(pieces)


class RemoteAnswer:
    """An answer of the first worker's, as it comes."""

    def __init__(self, workers: Workers, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        self._workers, self._number = workers, number
        self._events: deque[tuple[str, Any]] = deque()
        self._is_over = False
        self.status = 0
        workers.ask(0, "begin", number, method, *arguments)

    def _event(self) -> tuple[str, Any]:
        try:
            while not self._events:
                asked = self._workers.ask(0, "take", self._number, STEP_SECS, timeout=STEP_SECS + GRACE_SECS)
                self._events.extend(asked)
        except BaseException:
            self.close()
            raise
        kind, value = self._events.popleft()
        self._is_over = self._is_over or kind in ("end", "error")
        if kind == "error":
            raise value
        return kind, value

    def value(self) -> Any:
        """The one value of a call."""
        _, value = self._event()
        self._is_over = True
        return value

    def wait_for_status(self) -> None:
        _, self.status = self._event()

    def next(self) -> str | None:
        if self._is_over:
            return None
        kind, value = self._event()
        return None if kind == "end" else str(value)

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._workers.begin(0, "end", self._number)


def _opened_again(kind: type[PipelineEngine], recipe: Mapping[str, Any]) -> PipelineEngine:
    return kind(**recipe)
