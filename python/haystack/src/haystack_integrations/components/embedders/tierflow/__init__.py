"""Embedders that run in the process itself."""

from .embedders import TierflowDocumentEmbedder, TierflowTextEmbedder

__all__ = ["TierflowDocumentEmbedder", "TierflowTextEmbedder"]
