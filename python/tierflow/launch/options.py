"""The launcher's options: its own, and those of `accelerate launch` that mean something here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from ..claims import KV_DTYPES
from ..errors import UsageError


@dataclass
class Job:
    """What to run, over how many workers, and where."""

    target: str
    arguments: list[str] = field(default_factory=list)
    is_module: bool = False
    n_workers: int = 1
    address: str | None = None
    adapters: list[str] = field(default_factory=list)
    cpu: bool = False
    mixed_precision: str | None = None
    max_restarts: int = 0
    n_threads: int | None = None
    working_dir: str | None = None
    timeout: float = 120.0
    object_store_memory: int = 256 << 20

    def __post_init__(self) -> None:
        if self.n_workers < 1:
            raise UsageError(f"--num-workers {self.n_workers} is not at least 1")
        if self.max_restarts < 0:
            raise UsageError(f"--max-restarts {self.max_restarts} is negative")
        if self.cpu and self.adapters:
            raise UsageError("--cpu excludes --adapters")

    def environment(self, rank: int, local_rank: int, local_size: int, attempt: int) -> dict[str, str]:
        """What a worker's process is told, under our names and under those that scripts for other launchers read."""
        variables: dict[str, int | str] = {
            "TIERFLOW_RANK": rank,
            "TIERFLOW_WORLD_SIZE": self.n_workers,
            "TIERFLOW_LOCAL_RANK": local_rank,
            "TIERFLOW_LOCAL_WORLD_SIZE": local_size,
            "TIERFLOW_RESTART_COUNT": attempt,
            "RANK": rank,
            "WORLD_SIZE": self.n_workers,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": local_size,
            "PYTHONUNBUFFERED": 1,
        }
        if self.adapters:
            variables["TIERFLOW_ADAPTER"] = self.adapters[local_rank]
        if self.cpu:
            variables["ACCELERATE_USE_CPU"] = "true"
        if self.mixed_precision is not None:
            variables["ACCELERATE_MIXED_PRECISION"] = self.mixed_precision
        if self.n_threads is not None:
            variables["OMP_NUM_THREADS"] = variables["TIERFLOW_THREADS"] = self.n_threads
        return {name: str(value) for name, value in variables.items()}


class Parser(argparse.ArgumentParser):
    """Options may be written with `-` or `_` between their words, as Accelerate's are."""

    def option(self, *names: str, **how: object) -> None:
        spellings = [s for name in names for s in (name, "--" + name[2:].replace("-", "_"))]
        self.add_argument(*dict.fromkeys(spellings), **how)  # type: ignore[arg-type]


def parser() -> Parser:
    p = Parser("tierflow launch", description="Runs a script over one worker or several.", allow_abbrev=False)
    p.option("--num-workers", "--num-processes", dest="n_workers", type=int, default=1, metavar="N")
    p.option("--address", metavar="RAY", help="a Ray cluster: HOST:PORT, ray://HOST:PORT or auto; one is started here if none is named")
    p.option("--adapters", "--gpu-ids", metavar="0,1", help="the adapter of each worker of a machine")
    p.option("--cpu", action="store_true", help="compute on the host")
    p.option("--mixed-precision", choices=sorted(KV_DTYPES), help="of keys and values; of frozen weights in training")
    p.option("--max-restarts", type=int, default=0, metavar="N", help="start all workers again if one dies, up to N times")
    p.option("--num-cpu-threads-per-process", dest="n_threads", type=int, metavar="N", help="of each worker's engine")
    p.option("--working-dir", metavar="DIR", help="a folder that is sent to the machines of the cluster")
    p.option("--timeout", type=float, default=120.0, metavar="SECS", help="how long to wait for the cluster and for room on it")
    p.option("--object-store-memory", type=int, default=256 << 20, metavar="BYTES", help="of a cluster that is started here")
    p.option("--module", dest="is_module", action="store_true", help="the script is the name of a module, as of python -m")
    p.option("--multi-gpu", action="store_true", help="as --num-workers says; for scripts of Accelerate's users")
    p.option("--num-machines", type=int, default=1, help="1; several machines are a Ray cluster, see --address")
    p.add_argument("-m", dest="is_module", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("target", metavar="script", help="a Python file, or a module")
    p.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return p


def parse(argv: list[str]) -> Job:
    """The job that a command line describes."""
    given = vars(parser().parse_args(argv))
    given.pop("multi_gpu")
    if given.pop("num_machines") != 1:
        raise UsageError("--num-machines: several machines are a Ray cluster; start Ray on each, and name it with --address")
    adapters = given.pop("adapters") or ""
    given["adapters"] = [] if adapters == "all" else [name.strip() for name in adapters.split(",") if name.strip()]
    if not all(name.isdigit() for name in given["adapters"]):
        raise UsageError(f"--adapters {adapters}: expected numbers with commas between them, as `tierflow devices` counts adapters")
    return Job(**given)
