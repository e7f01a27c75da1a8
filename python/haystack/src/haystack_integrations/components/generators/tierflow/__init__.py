"""Generators that run in the process itself."""

from .chat_generator import TierflowChatGenerator

__all__ = ["TierflowChatGenerator"]
