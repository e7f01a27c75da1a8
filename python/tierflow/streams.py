"""Answers that come in pieces, for `for` and for `async for`."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, TypeVar

from .errors import ArgumentError, BusyError, ContextFullError, EngineError

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")

_END = object()


def refusal(status: int, body: dict[str, Any]) -> EngineError:
    """The exception for an error as the server tells it."""
    error = body.get("error") or {}
    message = str(error.get("message") or f"the request failed with status {status}")
    if error.get("code") == "context_length_exceeded":
        return ContextFullError(message)
    if status == 503:
        return BusyError(message)
    if 400 <= status < 500:
        return ArgumentError(message, argument=error.get("param"))
    return EngineError(message)


class OpenStreams:
    """The streams of an engine that have begun and not ended. A thread that has as many as there are sequences would wait for itself."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()

    def add(self, stream: Stream[Any]) -> None:
        self._streams.add(stream)

    def discard(self, stream: Stream[Any]) -> None:
        self._streams.discard(stream)

    def check(self, engine: Engine) -> None:
        """Refuses what this thread would wait for without an end. What is closed says so itself."""
        here, n_seqs = threading.get_ident(), engine.n_seqs
        if not engine.is_closed and sum(stream.reader == here for stream in list(self._streams)) >= n_seqs:
            raise BusyError(
                f"{n_seqs} of {n_seqs} sequences answer streams that this thread has not read to their end; read or close() one, or open "
                "the engine with a larger n_seqs"
            )


class Stream(Generic[T]):
    """An answer in pieces: iterate with `for` or `async for`. It begins with the first piece that is asked for, and ends when it is closed,
    read to its end, or forgotten. Two threads must not read one stream at the same time."""

    def __init__(self, engine: Engine, path: str, body: str, pick: Callable[[Stream[T], dict[str, Any]], T | None]) -> None:
        self._engine = engine
        self._path = path
        self._body = body
        self._pick = pick
        self._answer: Any = None
        self._ready: deque[T] = deque()
        self._ended = False
        self._thread: ThreadPoolExecutor | None = None
        self.reader = 0
        self.finish_reason: str | None = None
        """Why it ended: `stop`, `length` or `tool_calls`; None before, and where it was closed."""
        self.usage: dict[str, Any] | None = None
        """The tokens that it took, at its end."""

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        piece = self._next(checks=True)
        if piece is _END:
            raise StopIteration
        return piece

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        # A thread of its own: those that all share could all wait for a sequence, and nobody be left to read what one answers.
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "tierflow-stream")
        try:
            piece = await asyncio.get_running_loop().run_in_executor(self._thread, self._next, False)
        except asyncio.CancelledError:
            self.close()
            raise
        if piece is _END:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer before its next token."""
        self._ended = True
        self._ready.clear()
        self._engine._streams.discard(self)
        if self._answer is not None:
            self._answer.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _next(self, checks: bool) -> Any:
        try:
            while not self._ready:
                if self._ended:
                    return _END
                self._read(checks)
            return self._ready.popleft()
        except BaseException:
            # Whatever it was, Ctrl-C included, nothing is left running.
            self.close()
            raise

    def _read(self, checks: bool) -> None:
        if self._answer is None:
            if checks:
                self._engine._streams.check(self._engine)
                self.reader = threading.get_ident()
                self._engine._streams.add(self)
            self._answer = self._engine._native.stream(self._path, self._body)
        piece = self._answer.next()
        if piece is None:
            self.close()
        elif self._answer.status != 200:
            while (more := self._answer.next()) is not None:
                piece += more
            raise refusal(self._answer.status, json.loads(piece))
        else:
            for event in piece.split("\n\n"):
                self._take(event.strip())

    def _take(self, event: str) -> None:
        if not event.startswith("data: ") or event == "data: [DONE]":
            return
        chunk = json.loads(event.removeprefix("data: "))
        if "error" in chunk:
            raise refusal(500, chunk)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        picked = self._pick(self, chunk)
        if picked is not None:
            self._ready.append(picked)


def whole_chunk(stream: Stream[dict[str, Any]], chunk: dict[str, Any]) -> dict[str, Any]:
    """Chunks as OpenAI has them."""
    return chunk


def text_of(stream: Stream[str], chunk: dict[str, Any]) -> str | None:
    """The text of a chunk, where it has any."""
    for choice in chunk.get("choices", ()):
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            return str(text)
    return None
