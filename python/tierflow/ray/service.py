"""A Ray Serve application: the APIs of `tierflow serve` in front of replicas, each with a server of its own.

Ray Serve shares requests out to the replica with the fewest, and starts and ends replicas by how many requests are under way.
A replica passes requests on as they are, and answers as they come, so that streams stay streams and all APIs of the server are there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..errors import MissingPackageError, TierflowError, UsageError
from .cluster import import_ray
from .server import Server

# Of one connection alone, so that they are not passed on.
HOP_BY_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}


class Replica:
    """One server, and the requests that are passed on to it."""

    def __init__(self, model: str, program: str, arguments: Sequence[str], startup_timeout: float) -> None:
        self._session: Any = None
        self._server = Server(program, model, [*device_of(arguments), *arguments], startup_timeout)

    async def __call__(self, request: Any) -> Any:
        """The server's answer to a request."""
        import aiohttp
        from starlette.responses import StreamingResponse

        if self._session is None:
            # No limit on the whole: long answers stream for as long as they take.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=30), auto_decompress=False)
        query = f"?{request.url.query}" if request.url.query else ""
        address = f"{self._server.address}{request.url.path}{query}"
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            answer = await self._session.request(request.method, address, headers=headers, data=await request.body())
        except aiohttp.ClientError as error:
            return refusal(self._reason(error))
        passed_on = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return StreamingResponse(pieces(answer), status_code=answer.status, headers=passed_on)

    def _reason(self, error: Exception) -> str:
        try:
            self._server.check()
        except TierflowError as died:
            return str(died)
        return f"the server gives no answer: {error}"

    def check_health(self) -> None:
        """Ray Serve asks now and then; where it raises, another replica takes the place of this one."""
        self._server.check()

    async def __del__(self) -> None:
        if self._session is not None:
            await self._session.close()
        await asyncio.to_thread(self._server.stop)


async def pieces(answer: Any) -> AsyncIterator[bytes]:
    """What the server sends, as it comes; where the client leaves, the server is told by the closed connection."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.close()


def refusal(reason: str) -> Any:
    """An error as OpenAI's clients read it."""
    from starlette.responses import Response

    body = json.dumps({"error": {"message": reason, "type": "server_error", "code": 502}})
    return Response(body, status_code=502, media_type="application/json")


def device_of(arguments: Sequence[str]) -> list[str]:
    """The GPU that Ray lent to this replica, or the host, unless the arguments say it."""
    if any(argument == "--device" or argument.startswith("--device=") for argument in arguments):
        return []
    lent = import_ray().get_gpu_ids()
    return ["--device", f"gpu:{lent[0]}" if lent else "cpu"]


def service(
    model: str,
    *,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_ongoing_requests: float = 4,
    autoscaling: dict[str, Any] | None = None,
    max_queued_requests: int = 256,
    num_cpus: float = 1,
    num_gpus: float = 0,
    arguments: Sequence[str] = (),
    program: str = "tierflow",
    startup_timeout: float = 600.0,
) -> Any:
    """An application for `ray.serve.run`: `model` behind the APIs of OpenAI, Anthropic and Ollama.

    `arguments` are options of `tierflow serve` (`["--ctx-size", "8192"]`), and `program` is where it is on each machine.
    Replicas are added while more than `target_ongoing_requests` are under way at each, and taken away when there are fewer; `autoscaling` are further options of Ray's (`upscale_delay_s`).
    Where all are busy, `max_queued_requests` wait, and more are refused with status 503.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise UsageError(f"min_replicas {min_replicas} and max_replicas {max_replicas}: expected 1 ≤ min_replicas ≤ max_replicas")
    import_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise MissingPackageError(f'Ray Serve is not installed: pip install "ray[serve]" ({error})') from error
    scaling = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_ongoing_requests": target_ongoing_requests,
        **(autoscaling or {}),
    }
    deployment = serve.deployment(
        name="tierflow",
        autoscaling_config=scaling,
        max_ongoing_requests=max(1, int(2 * target_ongoing_requests)),
        max_queued_requests=max_queued_requests,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        health_check_period_s=2,
        max_constructor_retry_count=3,
    )
    return deployment(Replica).bind(model, program, list(arguments), startup_timeout)


def app(options: dict[str, Any]) -> Any:
    """`service` for Ray's configuration files and `serve run tierflow.ray.service:app model=model.gguf`."""
    return service(**{name: value if name in ("model", "program") else number_of(value) for name, value in options.items()})


def number_of(value: Any) -> Any:
    """A number that a command line spells out; all else as it is."""
    return json.loads(value) if isinstance(value, str) and value[:1].isdigit() else value
