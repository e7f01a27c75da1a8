"""Processes that work together: a group of ranks, and the one operation that all others are made of.

`Group.exchange` gives every rank the values of all ranks.
Barriers, gathers, broadcasts and reductions follow from it (`tierflow.distributed.collectives`), in the order of ranks, so that no result depends on which process was faster.
"""

from .group import Group, SoloGroup, current_group

__all__ = ["Group", "SoloGroup", "current_group"]
