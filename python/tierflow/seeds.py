"""Random generators that all processes share: those of NumPy, of torch and of Python's `random`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .distributed import Group
from .distributed.collectives import broadcast_object
from .trees import torch_if_imported


def set_seed(seed: int) -> None:
    """Seeds Python's and NumPy's global generators, and torch's where the program has imported it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if (torch := torch_if_imported()) is not None:
        torch.manual_seed(seed)


def synchronise(group: Group, generator: Any) -> None:
    """Gives `generator` the state that it has on rank 0."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = broadcast_object(group, generator.bit_generator.state)
    elif isinstance(generator, random.Random):
        generator.setstate(broadcast_object(group, generator.getstate()))
    elif hasattr(generator, "get_state") and hasattr(generator, "set_state"):
        generator.set_state(broadcast_object(group, generator.get_state()))


def reseed(generator: Any, seed: int) -> None:
    """Begins the sequence of `generator` anew."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    else:
        generator.manual_seed(seed)


def initial_seed() -> int:
    """A seed that follows from the global generators."""
    torch = torch_if_imported()
    return torch.random.initial_seed() if torch is not None else random.getrandbits(63)


def draw_base_seed(loader: Any) -> None:
    """Draws what torch's loaders draw for their workers before the order, so that orders are torch's."""
    torch = torch_if_imported()
    if torch is not None and isinstance(loader, torch.utils.data.DataLoader) and loader.generator is not None:
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
