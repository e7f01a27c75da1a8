"""`TierflowChatGenerator`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    StreamingCallbackT,
    StreamingChunk,
    ToolCall,
    ToolCallDelta,
    select_streaming_callback,
)
from haystack.tools import (
    ToolsType,
    deserialize_tools_or_toolset_inplace,
    flatten_tools_or_toolsets,
    serialize_tools_or_toolset,
)
from haystack.utils import ComponentDevice, deserialize_callable, serialize_callable

from haystack_integrations.common.tierflow import HeldEngine, named_budgets, read_device


@component
class TierflowChatGenerator:
    """Answers chats with a model that runs in this process, also where it is larger than the GPU's memory.

    `model`, `device_map` and `max_memory` are those of `tierflow.Engine`, and `engine_kwargs` its other options. `generation_kwargs` are
    the fields of OpenAI's API (`max_tokens`, `temperature`, `response_format`, `n` …).
    """

    def __init__(
        self,
        model: str,
        device: ComponentDevice | None = None,
        device_map: str | dict[str, int | str] | None = None,
        max_memory: dict[int | str, int | str] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.device_map = device_map
        self.max_memory = max_memory
        self.generation_kwargs = dict(generation_kwargs or {})
        self.streaming_callback = streaming_callback
        self.tools = tools
        self.engine_kwargs = dict(engine_kwargs or {})
        self._engine = HeldEngine(model, device, device_map, max_memory, **self.engine_kwargs)

    def warm_up(self) -> None:
        """Opens the model."""
        self._engine.open()

    def close(self) -> None:
        """Gives the model's memory back."""
        self._engine.close()

    def to_dict(self) -> dict[str, Any]:
        """The component as a dict."""
        generation_kwargs = dict(self.generation_kwargs)
        kind = generation_kwargs.get("response_format")
        if callable(getattr(kind, "model_json_schema", None)):
            schema = {"name": kind.__name__, "schema": kind.model_json_schema()}
            generation_kwargs["response_format"] = {"type": "json_schema", "json_schema": schema}
        return default_to_dict(
            self,
            model=self.model,
            device=self.device.to_dict() if self.device else None,
            device_map=self.device_map,
            max_memory=named_budgets(self.max_memory),
            generation_kwargs=generation_kwargs,
            streaming_callback=serialize_callable(self.streaming_callback) if self.streaming_callback else None,
            tools=serialize_tools_or_toolset(self.tools),
            engine_kwargs=self.engine_kwargs,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TierflowChatGenerator:
        """The component of a dict."""
        read_device(data)
        deserialize_tools_or_toolset_inplace(data["init_parameters"], key="tools")
        callback = data["init_parameters"].get("streaming_callback")
        if callback:
            data["init_parameters"]["streaming_callback"] = deserialize_callable(callback)
        return default_from_dict(cls, data)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answers `messages`. What is given here counts before what the component was made with."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        asked = self._asked(messages, generation_kwargs, tools)
        engine = self._engine.open()
        if callback is None:
            return {"replies": _replies(engine.create_chat_completion(**asked))}
        answer = _Streamed(ComponentInfo.from_component(self))
        with engine.create_chat_completion(**asked, **_STREAMED) as chunks:
            for chunk in chunks:
                for piece in answer.take(chunk):
                    callback(piece)
        return {"replies": answer.replies()}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """As `run`, while the event loop goes on. A task that is cancelled ends its answer."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        asked = self._asked(messages, generation_kwargs, tools)
        engine = await asyncio.to_thread(self._engine.open)
        answer = _Streamed(ComponentInfo.from_component(self))
        async with engine.create_chat_completion(**asked, **_STREAMED) as chunks:
            async for chunk in chunks:
                for piece in answer.take(chunk):
                    told = callback(piece) if callback else None
                    if asyncio.iscoroutine(told):
                        await told
        return {"replies": answer.replies()}

    def _asked(
        self, messages: list[ChatMessage] | str, generation_kwargs: dict[str, Any] | None, tools: ToolsType | None
    ) -> dict[str, Any]:
        listed = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
        asked = {**self.generation_kwargs, **(generation_kwargs or {})}
        asked["messages"] = [message.to_openai_dict_format() for message in listed]
        offered = flatten_tools_or_toolsets(tools if tools is not None else self.tools)
        if offered:
            asked["tools"] = [{"type": "function", "function": tool.tool_spec} for tool in offered]
        return asked


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def _calls(calls: Iterable[dict[str, Any]]) -> list[ToolCall]:
    """Calls whose arguments are JSON; a call of a model that was cut off is none."""
    made = []
    for call in calls:
        function = call["function"]
        try:
            made.append(ToolCall(tool_name=function["name"], arguments=json.loads(function["arguments"] or "{}"), id=call.get("id")))
        except ValueError:
            continue
    return made


def _replies(answer: dict[str, Any]) -> list[ChatMessage]:
    replies = []
    for choice in answer["choices"]:
        message = choice["message"]
        meta = {"model": answer["model"], "index": choice["index"], "finish_reason": choice["finish_reason"], "usage": answer["usage"]}
        if choice.get("logprobs"):
            meta["logprobs"] = choice["logprobs"]
        calls = _calls(message.get("tool_calls") or ())
        reasoning = message.get("reasoning_content")
        replies.append(ChatMessage.from_assistant(message["content"], meta=meta, tool_calls=calls or None, reasoning=reasoning))
    return replies


def _go_on(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Adds a piece to the call that it belongs to: the first one has the name, later ones more of the arguments."""
    call = calls.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
    call["id"] = piece.get("id") or call.get("id")
    for name in ("name", "arguments"):
        call["function"][name] += piece["function"].get(name) or ""


class _Streamed:
    """Answers that come in chunks: what a callback is told of each, and the replies at the end."""

    def __init__(self, info: ComponentInfo) -> None:
        self._info = info
        # By the index of the answer.
        self._choices: dict[int, dict[str, Any]] = {}
        self._model = ""
        self._usage: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> list[StreamingChunk]:
        self._model = chunk["model"]
        self._usage = chunk.get("usage") or self._usage
        pieces = []
        for choice in chunk["choices"]:
            kept = self._choices.setdefault(
                choice["index"], {"index": choice["index"], "content": "", "reasoning": "", "tool_calls": {}, "finish_reason": None}
            )
            delta = choice["delta"]
            content, calls = delta.get("content") or "", delta.get("tool_calls") or []
            starts = bool(content) and not kept["content"]
            kept["content"] += content
            kept["reasoning"] += delta.get("reasoning_content") or ""
            for call in calls:
                _go_on(kept["tool_calls"], call)
            kept["finish_reason"] = choice["finish_reason"] or kept["finish_reason"]
            deltas = [
                ToolCallDelta(
                    index=call["index"],
                    id=call.get("id"),
                    tool_name=call["function"].get("name"),
                    arguments=call["function"].get("arguments"),
                )
                for call in calls
            ]
            meta = {"model": self._model, "index": choice["index"], "received_at": datetime.now(timezone.utc).isoformat()}
            pieces.append(
                StreamingChunk(
                    content=content,
                    meta=meta,
                    component_info=self._info,
                    index=deltas[0].index if deltas else 0 if content else None,
                    tool_calls=deltas or None,
                    start=starts or any(delta.tool_name for delta in deltas),
                    finish_reason=choice["finish_reason"],
                )
            )
        return pieces

    def replies(self) -> list[ChatMessage]:
        replies = []
        for kept in self._choices.values():
            meta = {"model": self._model, "index": kept["index"], "finish_reason": kept["finish_reason"], "usage": self._usage}
            calls = _calls(kept["tool_calls"].values())
            text = None if calls and not kept["content"] else kept["content"]
            replies.append(ChatMessage.from_assistant(text, meta=meta, tool_calls=calls or None, reasoning=kept["reasoning"] or None))
        return replies
