"""`Llama`: an engine under the names of llama-cpp-python, so that code written for that changes its import alone."""

from __future__ import annotations

import os
from typing import Any, Iterator, Mapping, Sequence

from ._text import utf8
from .engine import Engine, Messages
from .errors import ArgumentError

# Arguments of llama-cpp-python that tune llama.cpp and change nothing here.
_WITHOUT_EFFECT = {
    "n_batch", "n_threads_batch", "use_mmap", "use_mlock", "offload_kqv", "flash_attn", "numa", "main_gpu", "split_mode", "last_n_tokens_size",
    "op_offload", "swa_full", "verbose", "logits_all", "no_perf", "vocab_only",
}  # fmt: skip

# Penalties and temperatures of llama-cpp-python where none is given.
_COMPLETION = {"max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.0}
_CHAT = {"temperature": 0.2, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.0}


class Llama(Engine):
    """A model under llama-cpp-python's names: `Llama(model_path=…, n_ctx=2048, n_gpu_layers=-1)`, called for completions. What `Engine`
    takes (`max_memory`, `device_map`) is taken, too; what asks for something that does not exist here is refused by name."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        n_ctx: int = 512,
        n_threads: int | None = None,
        n_ubatch: int | None = None,
        seed: int | None = None,
        chat_format: str | None = None,
        **options: Any,
    ) -> None:
        if chat_format is not None:
            raise ArgumentError("chat_format: is not supported; the model's own template is used", argument="chat_format")
        kept = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
        # As llama.cpp has it, no layers on the GPU leave all of them to the host.
        kept.setdefault("device", "auto" if n_gpu_layers else "cpu")
        if kept["device"] != "cpu":
            kept["n_gpu_layers"] = n_gpu_layers
        self._seed = None if seed is None or seed in (-1, 0xFFFFFFFF) else seed
        super().__init__(model_path, ctx_size=n_ctx, threads=n_threads, ubatch_size=n_ubatch, **kept)

    def __reduce__(self) -> Any:
        return _opened_again, (type(self), self._recipe, self._seed)

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **options: Any) -> Llama:
        """The model of a hub's repository: its file `filename`, or what the engine chooses."""
        return cls(f"{repo_id}:{filename}" if filename else repo_id, **options)

    def __call__(self, prompt: str | bytes | Sequence[int], **how: Any) -> Any:
        return self.create_completion(prompt, **how)

    def create_completion(self, prompt: str | bytes | Sequence[int], *, echo: bool = False, **how: Any) -> Any:
        asked = self._asked(_COMPLETION, how)
        answer = super().create_completion(prompt, **asked)
        if not echo:
            return answer
        before = utf8(prompt, "prompt") if isinstance(prompt, (str, bytes)) else self.detokenize(prompt).decode()
        if asked.get("stream"):
            return _echoed(before, answer)
        for choice in answer["choices"]:
            choice["text"] = before + choice["text"]
        return answer

    def create_chat_completion(self, messages: Messages, **how: Any) -> Any:
        return super().create_chat_completion(messages, **self._asked(_CHAT, how))

    def _asked(self, defaults: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a request. Zero or less asks for as many tokens as there is room for."""
        asked = {**defaults, "seed": self._seed, **how}
        asked.pop("model", None)
        if asked.get("max_tokens") is not None and asked["max_tokens"] <= 0:
            asked["max_tokens"] = None
        for name, neutral in (("typical_p", 1.0), ("tfs_z", 1.0), ("mirostat_mode", 0)):
            if name in asked and asked.pop(name) != neutral:
                raise ArgumentError(f"{name}: is not supported; leave it at {neutral}", argument=name)
        for name in ("mirostat_tau", "mirostat_eta"):
            asked.pop(name, None)
        return asked

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False, **more: Any) -> list[int]:  # type: ignore[override]
        """The tokens of a text. llama-cpp-python gives it as bytes."""
        return super().tokenize(text, add_special=more.get("add_special", add_bos), parse_special=more.get("parse_special", special))

    def detokenize(self, tokens: Sequence[int], *_: Any, **__: Any) -> bytes:  # type: ignore[override]
        """The text of tokens, in UTF-8."""
        return super().detokenize(tokens).encode()

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """OpenAI's object for `embed`."""
        texts = [input] if isinstance(input, str) else list(input)
        rows = Engine.embed(self, texts)
        data = [{"object": "embedding", "index": index, "embedding": row.tolist()} for index, row in enumerate(rows)]
        n_tokens = sum(len(self.tokenize(text)) for text in texts)
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return {"object": "list", "data": data, "model": model or self._recipe["model"], "usage": usage}

    def embed(self, input: str | Sequence[str], normalize: bool = False, **_: Any) -> Any:  # type: ignore[override]
        """One list of numbers, or one for each text."""
        return Engine.embed(self, input, normalize=normalize).tolist()

    def n_ctx(self) -> int:
        """Positions of the context."""
        return self.ctx_size

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.vocab_size

    def n_embd(self) -> int:
        """Values of a hidden state."""
        return int(self._facts["hidden_size"])

    def token_bos(self) -> int:
        """The token that begins a text; -1 where there is none."""
        bos = self._facts["bos_token"]
        return -1 if bos is None else int(bos)

    def token_eos(self) -> int:
        """The token that ends a text; -1 where there is none."""
        return int(next(iter(self._facts["eos_tokens"] or ()), -1))

    def reset(self) -> None:
        """Nothing needs to be forgotten: each prompt goes on from what of it is in the cache."""


def _echoed(before: str, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            choice["text"], before = before + choice["text"], ""
        yield chunk


def _opened_again(kind: type[Llama], recipe: dict[str, Any], seed: int | None) -> Llama:
    engine = kind.__new__(kind)
    Engine.__init__(engine, **recipe)
    engine._seed = seed
    return engine
