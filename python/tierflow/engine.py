"""`Engine`, an open model."""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Mapping, Sequence, Union, cast

import numpy as np

from . import _tierflow
from ._options import Budget, Progress, options_of, progress_of
from ._text import to_json, utf8
from .errors import ArgumentError
from .plans import Plan
from .streams import OpenStreams, Stream, refusal, text_of, whole_chunk

Messages = Sequence[Mapping[str, Any]]
Prompt = Union[str, bytes, Sequence[int]]


class Engine:
    """A model, open: where its weights are is planned for the memory that there is, or that it may use.

    `model` is a folder with `config.json` and safetensors, a `.gguf` file, or the name of a model on the hub, which is fetched into its
    cache unless `fetch=False`. `device` computes (`auto`, `gpu`, `gpu:1`, `cpu`, `cuda:0`, `mps`), `device_map` says by which rule weights
    are placed, or where each module is, and `max_memory` what each device may give: `{0: "4GiB", "cpu": "16GiB"}`. `ctx_size=0` leaves the
    length of the context to the plan. `n_seqs` answers are generated at the same time; others wait. `lora` adds LoRA adapters:
    a folder that PEFT wrote or a GGUF file of llama.cpp's, several, or a dict of them and their scales. What generates takes
    `lora=[{"id": 0, "scale": 0.5}]` for others than those scales.

    An engine is closed by `close()`, at the end of a `with`, or when it is forgotten. It can be used by several threads, not in a fork of
    its process; pickled, it is opened anew where it is read.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: Any = "auto",
        device_map: str | Mapping[str, Any] | None = "auto",
        max_memory: str | Mapping[Any, Budget] | None = None,
        ctx_size: int = 0,
        n_seqs: int = 1,
        lora: Any = None,
        embedding: bool = False,
        fetch: bool = True,
        progress: Progress = None,
        **options: Any,
    ) -> None:
        named = {
            "device": device,
            "device_map": device_map,
            "max_memory": max_memory,
            "ctx_size": ctx_size,
            "n_seqs": n_seqs,
            "lora": lora,
            "embedding": embedding,
            "fetch": fetch,
            **options,
        }
        asked = options_of(model, **named)
        # Texts, so that what was given can be pickled whatever it was.
        self._recipe = json.loads(asked)
        self._streams = OpenStreams()
        self._native = _tierflow.Engine.open(asked, progress_of(progress))
        self._facts: dict[str, Any] = json.loads(self._native.facts())
        self.n_seqs: int = self._facts["n_seqs"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.is_closed else ""
        return f"<tierflow.{type(self).__name__} {self._recipe['model']!r}{state}>"

    def __reduce__(self) -> Any:
        return _opened_again, (type(self), self._recipe)

    def close(self) -> None:
        """Ends what runs, and gives the model's memory back."""
        self._native.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or this process is a fork of its own."""
        return bool(self._native.is_closed)

    # What it is.

    @property
    def plan(self) -> Plan:
        """Where its weights are, and which devices compute."""
        return Plan(self._native.plan())

    @property
    def hf_device_map(self) -> dict[str, int | str]:
        """Module to device, under the name that transformers has for it."""
        return self.plan.device_map

    @property
    def facts(self) -> dict[str, Any]:
        """Name, family, sizes, context and special tokens of the model."""
        return dict(self._facts)

    @property
    def ctx_size(self) -> int:
        """Positions of a sequence."""
        return int(self._facts["ctx_size"])

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return int(self._facts["vocab_size"])

    def devices(self) -> list[dict[str, Any]]:
        """The devices that the plan was made for, with their limits and rates."""
        return self.plan.to_dict()["device_specs"]

    # Tokens.

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of a text. `add_special` puts the tokens around it with which the model's texts begin and end; with `parse_special`,
        special tokens that the text spells out (`<|im_end|>`) are these."""
        return list(self._native.encode(utf8(text, "text"), add_special, parse_special))

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._native.decode(_ids(tokens)))

    # Answers.

    def generate(self, prompt: Prompt, **how: Any) -> str:
        """Goes on after a prompt, which goes into the model as it is. `how` are the fields of OpenAI's completions and llama.cpp's server:
        `max_tokens`, `temperature`, `top_p`, `top_k`, `min_p`, `seed`, `stop`, `repeat_penalty`, `logit_bias` … What is not given is as the
        model's files say. Ctrl-C ends it, and the engine can be used on."""
        return str(self.create_completion(prompt, **how)["choices"][0]["text"])

    def stream(self, prompt: Prompt | Messages, **how: Any) -> Stream[str]:
        """What `generate` gives, or for messages the text of what `chat` gives, in pieces as they come."""
        asked = {**how, "stream": True, "stream_options": {"include_usage": True}}
        if _is_messages(prompt):
            return Stream(self, "/v1/chat/completions", self._chat_body(cast(Messages, prompt), asked), text_of)
        return Stream(self, "/v1/completions", self._prompt_body(cast(Prompt, prompt), asked), text_of)

    async def agenerate(self, prompt: Prompt, **how: Any) -> str:
        """As `generate`, for `await`."""
        return "".join([piece async for piece in self.stream(prompt, **how)])

    def chat(
        self, messages: Messages, *, tools: Sequence[Any] | None = None, response_format: Any = None, **how: Any
    ) -> dict[str, Any]:
        """The assistant's next message of a conversation, ready to be appended to it: `content`, `tool_calls` where it calls `tools`, and
        `reasoning_content` where the model thought. `response_format` holds it to JSON: OpenAI's object, or a class with
        `model_json_schema` (pydantic)."""
        answer = self.create_chat_completion(messages, tools=tools, response_format=response_format, **how)
        message = answer["choices"][0]["message"]
        return {name: value for name, value in message.items() if value is not None or name == "content"}

    def create_completion(self, prompt: Prompt, **how: Any) -> Any:
        """OpenAI's object for `generate`; with `stream=True`, an iterator of its chunks."""
        body = self._prompt_body(prompt, how)
        return Stream(self, "/v1/completions", body, whole_chunk) if how.get("stream") else self._post("/v1/completions", body)

    def create_chat_completion(self, messages: Messages, **how: Any) -> Any:
        """OpenAI's object for `chat`; with `stream=True`, an iterator of its chunks."""
        body = self._chat_body(messages, how)
        return Stream(self, "/v1/chat/completions", body, whole_chunk) if how.get("stream") else self._post("/v1/chat/completions", body)

    def _prompt_body(self, prompt: Prompt, how: Mapping[str, Any]) -> str:
        prompt = utf8(prompt, "prompt") if isinstance(prompt, (str, bytes)) else _ids(prompt, "prompt")
        return self._body({**how, "prompt": prompt}, "prompt")

    def _chat_body(self, messages: Messages, how: Mapping[str, Any]) -> str:
        if not _is_messages(messages):
            raise ArgumentError('messages: must be a list such as [{"role": "user", "content": "Hello"}]', argument="messages")
        fields = {**how, "messages": list(messages)}
        if how.get("tools") is not None:
            fields["tools"] = list(how["tools"])
        if callable(getattr(how.get("response_format"), "model_json_schema", None)):
            kind = how["response_format"]
            schema = {"name": kind.__name__, "schema": kind.model_json_schema()}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return self._body(fields, "messages")

    def _body(self, fields: Mapping[str, Any], argument: str) -> str:
        return to_json({name: value for name, value in fields.items() if value is not None}, argument)

    def _post(self, path: str, body: str) -> dict[str, Any]:
        self._streams.check(self)
        status, text = self._native.post(path, body)
        answer: dict[str, Any] = json.loads(text)
        if status != 200:
            raise refusal(status, answer)
        return answer

    # Numbers.

    def logits(self, prompt: Prompt, *, last: bool = False) -> np.ndarray:
        """The logits after each token of a prompt, `[n_tokens, vocab_size]`, or after the last one, `[vocab_size]`."""
        self._streams.check(self)
        rows = np.frombuffer(self._native.logits(self._tokens(prompt), not last), dtype="<f4")
        return rows if last else rows.reshape(-1, self.vocab_size)

    def score(self, prompt: Prompt) -> np.ndarray:
        """How likely each token of a prompt is after those before it, as natural logarithms, `[n_tokens - 1]`: the first has none before
        it."""
        self._streams.check(self)
        return np.frombuffer(self._native.score(self._tokens(prompt)), dtype="<f4")

    def embed(
        self,
        texts: str | bytes | Sequence[str | bytes],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """The vector of a text, `[size]`, or those of several, `[n, size]`; made as the model's files say, unless `pooling` (`mean`, `cls`,
        `last`) and `normalize` say otherwise. Of an engine that was opened with `embedding=True`, or of an encoder."""
        is_one = isinstance(texts, (str, bytes))
        given = [utf8(text, "texts") for text in ([texts] if is_one else texts)]
        if not given:
            raise ArgumentError("texts: is empty; there is nothing to embed", argument="texts")
        values, width = self._native.embed(given, pooling, normalize, prompt_name)
        rows = np.frombuffer(values, dtype="<f4").reshape(len(given), width)
        return rows[0] if is_one else rows

    def _tokens(self, prompt: Prompt) -> list[int]:
        return Engine.tokenize(self, prompt) if isinstance(prompt, (str, bytes)) else _ids(prompt, "prompt")


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and any(isinstance(entry, Mapping) for entry in prompt)


def _ids(tokens: Iterable[int], argument: str = "tokens") -> list[int]:
    try:
        ids = [int(token) for token in tokens]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{argument}: must be token ids, or a text: {error}", argument=argument) from error
    wrong = next((token for token in ids if not 0 <= token < 1 << 32), None)
    if wrong is not None:
        raise ArgumentError(f"{argument}: {wrong} is no token; ids go from 0", argument=argument)
    return ids


def _opened_again(kind: type[Engine], recipe: dict[str, Any]) -> Engine:
    engine = kind.__new__(kind)
    Engine.__init__(engine, **recipe)
    return engine
