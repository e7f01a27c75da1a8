"""A Ray cluster: one that exists, or one that is started here for as long as it is used.

Ray waits long, or without end, for what is not there, so that addresses are tried before Ray is asked, and each wait here has a deadline.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from ..errors import (
    ClusterError,
    MissingPackageError,
    ObjectStoreFullError,
    TierflowError,
    WorkerDiedError,
)

T = TypeVar("T")

DEFAULT_TIMEOUT_SECS = 120.0
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def import_ray() -> Any:
    """The ray package."""
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("this needs Ray, which is not installed: pip install ray") from error
    return ray


@contextmanager
def connected(
    address: str | None, n_cpus: int, timeout: float = DEFAULT_TIMEOUT_SECS, object_store_memory: int = 256 << 20, **how: Any
) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` or in `RAY_ADDRESS`, or to one of this machine alone that ends with the block.

    A connection that the program has already is used, and left as it is.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": "ERROR", "log_to_driver": False, **how}
    try:
        if address is None:
            sizes = {"num_cpus": n_cpus, "object_store_memory": object_store_memory}
            with loopback_only():
                started(lambda: ray.init("local", include_dashboard=False, **sizes, **quiet), timeout)
        else:
            with loopback_only() if is_on_loopback(address) else nullcontext():
                check_reachable(address, timeout)
                ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if isinstance(error, TierflowError):
            raise
        raise ClusterError(f"cannot connect to the Ray cluster {address or 'of this machine'}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def started(start: Callable[[], T], timeout: float) -> T:
    """What `start` makes: processes of Ray's. To these Ray gives 30 s, which a busy machine may not do with, so that it is tried again
    within the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return start()
        except Exception as error:
            # It has no type of its own.
            if "timed out during startup" not in str(error):
                raise
            import_ray().shutdown()
            if time.monotonic() > deadline:
                raise ClusterError(f"Ray's processes were not up within {timeout:g} s: {first_line(error)}") from error


@contextmanager
def loopback_only() -> Iterator[None]:
    """Clusters that are started in this block listen on the loopback alone, where nothing outside this machine reaches them.

    Ray has no option for that, and takes another address for 127.0.0.1. It does so by itself where firewalls would ask (macOS, Windows),
    unless this variable says otherwise, which its processes inherit; what it said when Ray was imported is changed for this process.
    """
    import ray._private.ray_constants as constants

    asked, known = os.environ.get(LOOPBACK_VARIABLE), getattr(constants, "ENABLE_RAY_CLUSTER", None)
    os.environ[LOOPBACK_VARIABLE] = "0"
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = known
        if asked is None:
            del os.environ[LOOPBACK_VARIABLE]
        else:
            os.environ[LOOPBACK_VARIABLE] = asked


def is_on_loopback(address: str) -> bool:
    """Whether a cluster answers on this machine's loopback and nowhere else, so that Ray must not take another address for it."""
    from ray._private.services import get_node_ip_address

    host, _, port = address.rpartition(":")
    return host in ("127.0.0.1", "localhost", "[::1]") and port.isdigit() and listens(host, port) and not listens(get_node_ip_address(), port)


def listens(host: str, port: str) -> bool:
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def check_reachable(address: str, timeout: float) -> None:
    """Refuses an address where no Ray cluster answers, within the deadline."""
    if address in ("auto", "local"):
        return
    is_client = address.startswith("ray://")
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise ClusterError(f"Ray address {address!r}: expected HOST:PORT, ray://HOST:PORT or auto")
    started = time.monotonic()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=min(timeout, 10.0)).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error
    if not is_client:
        check_health(address, timeout - (time.monotonic() - started))


def check_health(address: str, timeout: float) -> None:
    """Asks the cluster itself, in a process that can be ended: Ray's own call does not return where something else listens."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=max(timeout, 1.0))
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"what listens at {address} gave no answer within {timeout:.0f} s; is it a Ray cluster?") from error
    if answer.returncode != 0:
        lines = (answer.stderr or answer.stdout).strip().splitlines()
        raise ClusterError(f"the Ray cluster at {address} is not healthy: {lines[-1] if lines else 'no reason given'}")


@contextmanager
def own_errors(what: str) -> Iterator[None]:
    """Ray's exceptions as those of this package; `what` says what was under way.

    Ray wraps what a worker raises, several times over; what this package raised there is raised here.
    """
    import ray.exceptions as failures

    try:
        yield
    except Exception as error:
        chain = list(causes(error))
        full = next((e for e in chain if isinstance(e, failures.ObjectStoreFullError | failures.OutOfDiskError)), None)
        # Ray's own wrapper is an instance of what it wraps, too, and cannot be sent on.
        ours = next((e for e in chain if isinstance(e, TierflowError) and not isinstance(e, failures.RayTaskError)), None)
        if ours is not None and ours is not error:
            raise ours from error
        if full is not None:
            raise store_full(what, full) from error
        if any(isinstance(e, failures.GetTimeoutError) for e in chain):
            raise ClusterError(f"{what} took longer than its deadline") from error
        if died := [e for e in chain if isinstance(e, failures.RayActorError | failures.WorkerCrashedError | failures.OutOfMemoryError)]:
            raise WorkerDiedError(f"{what}: {first_line(died[-1])}") from error
        raise


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised for, outermost first."""
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        each = found.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            found += [getattr(each, "cause", None), each.__cause__]


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def store_full(what: str, error: BaseException) -> ObjectStoreFullError:
    return ObjectStoreFullError(
        f"{what}: Ray's object store is full ({first_line(error)}); "
        "make batches smaller, or the store larger (object_store_memory)"
    )
