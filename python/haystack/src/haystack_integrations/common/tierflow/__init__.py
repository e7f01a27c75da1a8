"""What tierflow's components share."""

from .held import HeldEngine, named_budgets, read_device

__all__ = ["HeldEngine", "named_budgets", "read_device"]
