"""tierflow on Ray: batch inference over data sets, and a service with replicas. Ray itself is needed (`pip install "ray[data,serve]"`)."""

from .cluster import own_errors
from .predictor import BatchPredictor, predict
from .service import service

__all__ = ["BatchPredictor", "own_errors", "predict", "service"]
