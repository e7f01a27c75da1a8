"""tierflow on Ray: batch inference over data sets, and a service with replicas. Ray itself is needed (`pip install ray`)."""
