"""tierflow on Ray: batch inference over data sets, a service with replicas, and one model over several machines. Ray itself is needed
(`pip install "ray[data,serve]"`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cluster import own_errors
from .predictor import BatchPredictor, predict
from .service import service

if TYPE_CHECKING:
    from .pipeline import PipelineEngine, PipelinePlan

__all__ = ["BatchPredictor", "PipelineEngine", "PipelinePlan", "own_errors", "predict", "service"]


def __getattr__(name: str) -> Any:
    # They need the native module, and the others do not.
    if name in ("PipelineEngine", "PipelinePlan"):
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
