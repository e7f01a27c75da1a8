"""`TierflowTextEmbedder` and `TierflowDocumentEmbedder`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

from haystack_integrations.common.tierflow import HeldEngine, named_budgets, read_device


class _Embedder:
    """What both have in common."""

    _own: dict[str, Any]

    def _hold(
        self,
        model: str,
        device: ComponentDevice | None,
        device_map: Any,
        max_memory: Any,
        embed_kwargs: dict[str, Any] | None,
        engine_kwargs: dict[str, Any] | None,
        **own: Any,
    ) -> None:
        self.model = model
        self.device = device
        self.device_map = device_map
        self.max_memory = max_memory
        self.embed_kwargs = dict(embed_kwargs or {})
        self.engine_kwargs = dict(engine_kwargs or {})
        self._own = own
        self._engine = HeldEngine(model, device, device_map, max_memory, **{**self.engine_kwargs, "embedding": True})

    def warm_up(self) -> None:
        """Opens the model."""
        self._engine.open()

    def close(self) -> None:
        """Gives the model's memory back."""
        self._engine.close()

    def to_dict(self) -> dict[str, Any]:
        """The component as a dict."""
        return default_to_dict(
            self,
            model=self.model,
            device=self.device.to_dict() if self.device else None,
            device_map=self.device_map,
            max_memory=named_budgets(self.max_memory),
            embed_kwargs=self.embed_kwargs,
            engine_kwargs=self.engine_kwargs,
            **self._own,
        )

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        return self._engine.open().embed(texts, **self.embed_kwargs).tolist() if texts else []


@component
class TierflowTextEmbedder(_Embedder):
    """The vector of a text, such as a query. `embed_kwargs` are those of `tierflow.Engine.embed`, such as `prompt_name="query"`."""

    def __init__(
        self,
        model: str,
        device: ComponentDevice | None = None,
        device_map: str | dict[str, int | str] | None = None,
        max_memory: dict[int | str, int | str] | None = None,
        prefix: str = "",
        suffix: str = "",
        embed_kwargs: dict[str, Any] | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.prefix, self.suffix = prefix, suffix
        self._hold(model, device, device_map, max_memory, embed_kwargs, engine_kwargs, prefix=prefix, suffix=suffix)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TierflowTextEmbedder:
        """The component of a dict."""
        read_device(data)
        return default_from_dict(cls, data)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The vector of `text`."""
        if not isinstance(text, str):
            raise TypeError("TierflowTextEmbedder takes a text; TierflowDocumentEmbedder takes documents")
        return {"embedding": self._vectors([f"{self.prefix}{text}{self.suffix}"])[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        """As `run`, while the event loop goes on."""
        return await asyncio.to_thread(self.run, text)


@component
class TierflowDocumentEmbedder(_Embedder):
    """The vectors of documents, with the meta fields of `meta_fields_to_embed` before their texts."""

    def __init__(
        self,
        model: str,
        device: ComponentDevice | None = None,
        device_map: str | dict[str, int | str] | None = None,
        max_memory: dict[int | str, int | str] | None = None,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        embed_kwargs: dict[str, Any] | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.prefix, self.suffix = prefix, suffix
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed or ()), embedding_separator
        own = {"meta_fields_to_embed": self.meta_fields_to_embed, "embedding_separator": embedding_separator}
        self._hold(model, device, device_map, max_memory, embed_kwargs, engine_kwargs, prefix=prefix, suffix=suffix, **own)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TierflowDocumentEmbedder:
        """The component of a dict."""
        read_device(data)
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The documents with their vectors; those that are given stay as they are."""
        if not isinstance(documents, list) or any(not isinstance(document, Document) for document in documents):
            raise TypeError("TierflowDocumentEmbedder takes a list of documents; TierflowTextEmbedder takes a text")
        vectors = self._vectors([self._text(document) for document in documents])
        return {"documents": [replace(document, embedding=vector) for document, vector in zip(documents, vectors)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """As `run`, while the event loop goes on."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[name]) for name in self.meta_fields_to_embed if document.meta.get(name) is not None]
        return self.prefix + self.embedding_separator.join([*fields, document.content or ""]) + self.suffix
