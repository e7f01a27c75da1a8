"""Which device a process of a group computes with, and that no two plan with the same memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .distributed import Group
from .errors import BudgetInUseError, MissingPackageError, UsageError

if TYPE_CHECKING:
    from .accelerator import Accelerator

# Of keys and values. There are none in BF16; F32 holds all that BF16 would.
KV_DTYPES = {"no": "f32", "fp16": "f16", "bf16": "f32"}

# Locks last as long as their files are open: as long as this process lives.
_claims: dict[str, IO[str]] = {}


def precision_of(given: str | None) -> str | None:
    """The `mixed_precision` that was given, or else that of the launcher, if any."""
    precision = given or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision is not None and precision not in KV_DTYPES:
        raise UsageError(f"mixed_precision {precision!r} is none of {', '.join(KV_DTYPES)}")
    return precision


def choose_device(cpu: bool, group: Group) -> str:
    """The adapter that the launcher names, or else one for each process of a machine; `cpu` where there are none."""
    if cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    if adapter := os.environ.get("TIERFLOW_ADAPTER"):
        return f"gpu:{adapter}"
    if group.size == 1:
        return "auto"
    return f"gpu:{group.local_rank}" if has_gpus() else "cpu"


def has_gpus() -> bool:
    """Whether this machine has an adapter that is used without being asked for by name."""
    return any(device["device"].startswith("gpu:") and device["kind"] != "software" for device in known_devices())


def known_devices() -> list[dict[str, Any]]:
    try:
        from .plans import devices  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise MissingPackageError("tierflow's native module is not installed") from error
    return devices()


def engine_options(accelerator: Accelerator, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an engine on the accelerator's device, whose memory is claimed; processes of one machine share its cores."""
    options = {"device": accelerator.device, **options}
    if accelerator.mixed_precision is not None:
        options.setdefault("kv_dtype", KV_DTYPES[accelerator.mixed_precision])
    return share_of_machine(accelerator._group, options)


def training_options(group: Group, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model in training, which a process of a group opens without its accelerator."""
    device = options["device"]
    options = {**options, "device": choose_device(False, group) if device == "auto" else device}
    return share_of_machine(group, options) if group.size > 1 else options


def share_of_machine(group: Group, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with this process's share of the cores and of the host's memory, where they do not say otherwise; its GPU is claimed."""
    device = str(options["device"])
    if device.startswith("gpu:"):
        claim(device, shared=device in budgets_of(options.get("max_memory")))
    if threads := os.environ.get("TIERFLOW_THREADS"):
        options = {**options, "threads": options.get("threads") or int(threads)}
    elif group.local_size > 1:
        options = {**options, "threads": options.get("threads") or max(1, (os.cpu_count() or 1) // group.local_size)}
    budgets = budgets_of(options.get("max_memory"))
    if group.local_size > 1 and "cpu" not in budgets:
        # Each process would plan with all free memory of the host.
        options = {**options, "max_memory": {**budgets, "cpu": host_memory() // group.local_size}}
    return options


def budgets_of(max_memory: Any) -> dict[str, Any]:
    """Budgets by the names of devices: `gpu:0=4GiB,cpu=8GiB`, `{0: "4GiB"}` and `{"gpu:0": …}` are the same."""
    if isinstance(max_memory, str):
        max_memory = dict(part.split("=", 1) for part in max_memory.split(",") if "=" in part)
    named = {str(name).strip(): budget for name, budget in (max_memory or {}).items()}
    return {f"gpu:{name}" if name.isdigit() else name.replace("cuda:", "gpu:"): budget for name, budget in named.items()}


def host_memory() -> int:
    """What an engine would plan with of this machine's memory."""
    return next(int(device["capacity"]) for device in known_devices() if device["device"] == "cpu")


def claim(device: str, shared: bool) -> None:
    """Reserves `device` for this process among those of this user, or a part of it if `shared`.

    It is a lock on a file, which ends with the process, however that ends.
    """
    try:
        import fcntl
    except ImportError:
        # Windows has no such locks.
        return
    if device in _claims:
        return
    file = open(claims_folder() / f"{device.replace(':', '-')}.lock", "a+")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        holders = living_holders(file)
        file.close()
        raise BudgetInUseError(
            f"process {os.getpid()} would plan with the memory of {device}, which process {holders} plans with; "
            f'give each a part of it (max_memory={{"{device}": "4GiB"}}), or an adapter of its own (--adapters)'
        ) from error
    if not shared:
        file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _claims[device] = file


def living_holders(file: IO[str]) -> str:
    """The processes that a lock's file names and that still run."""
    file.seek(0)
    holders = [line for line in file.read().split() if line.isdigit() and is_running(int(line))]
    return ", ".join(holders) or "another one"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def claims_folder() -> Path:
    """A folder of this user alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime if os.path.isdir(runtime) else tempfile.gettempdir()) / f"tierflow-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UsageError(f"{folder} belongs to another user; set XDG_RUNTIME_DIR to a folder of yours")
    return folder
