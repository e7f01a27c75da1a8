"""Losses: numbers that are computed when they are asked for, and that go backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UsageError
from .token_batches import TokenBatch

if TYPE_CHECKING:
    from .lora_model import LoraModel

# Losses have a method of that name, as torch's tensors do.
Real = float


class Forward:
    """One call of a model, computed when its loss is asked for, at the latest before the adapter changes."""

    def __init__(self, model: LoraModel, batch: TokenBatch, draw: int | None, n_items: int | None) -> None:
        self.model = model
        self._arguments: Any = (batch.tokens, batch.targets, draw, n_items)
        self._version = model._version
        self._value: float | None = None
        self._is_done = False

    def value(self) -> float:
        """The loss."""
        if self._value is None:
            self._value = self.model._native.loss(*self._arguments)
        return self._value

    def backward(self, factor: float) -> None:
        """Adds the gradients of `factor` times the loss to those of the model."""
        if self._is_done:
            raise UsageError("backward was called on this loss before; call the model again for a loss of its own")
        if self._version != self.model._version:
            raise UsageError("the adapter has changed since the model was called; call it again, and then backward before the optimiser's step")
        self._value = self.model._native.loss(*self._arguments, factor)
        self.model._has_gradients = True
        self._is_done = True


class Number(np.float64):
    """A loss that does not go backward any more."""

    def detach(self) -> Number:
        return self

    cpu = float = detach

    def numpy(self) -> np.float64:
        return np.float64(self)


class Loss:
    """A loss in nats. It reads as a number (`item()`, `float(loss)`, comparisons, sums), and times or by a number it still goes backward.

    Behind `backward`, it costs nothing to read; before, it costs a forward.
    """

    def __init__(self, forward: Forward, factor: Real = 1.0) -> None:
        self._forward = forward
        self._factor = factor

    @property
    def model(self) -> LoraModel:
        """Whose loss it is."""
        return self._forward.model

    def item(self) -> Real:
        """The number."""
        return self._forward.value() * self._factor

    def backward(self, scale: Real = 1.0) -> None:
        """Adds the gradients of `scale` times the loss to those of the model."""
        self._forward.backward(self._factor * Real(scale))

    def detach(self) -> Number:
        """The number, as one of NumPy."""
        return Number(self.item())

    float = cpu = detach

    def numpy(self) -> np.float64:
        """The same."""
        return np.float64(self.item())

    def __float__(self) -> Any:
        return self.item()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.item(), dtype or np.float64)

    def __repr__(self) -> str:
        return f"tierflow loss {self.item():.6g}"

    def __format__(self, how: str) -> str:
        return format(self.item(), how)

    def __mul__(self, factor: Any) -> Loss:
        return Loss(self._forward, self._factor * float_of(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Loss:
        return Loss(self._forward, self._factor / float_of(divisor))

    def __add__(self, other: Any) -> Number:
        return Number(self.item() + float_of(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Number:
        return Number(self.item() - float_of(other))

    def __rsub__(self, other: Any) -> Number:
        return Number(float_of(other) - self.item())

    def __eq__(self, other: object) -> bool:
        return self.item() == float_of(other)

    def __lt__(self, other: Any) -> bool:
        return self.item() < float_of(other)

    def __le__(self, other: Any) -> bool:
        return self.item() <= float_of(other)

    def __gt__(self, other: Any) -> bool:
        return self.item() > float_of(other)

    def __ge__(self, other: Any) -> bool:
        return self.item() >= float_of(other)

    def __hash__(self) -> int:
        return id(self)


def float_of(value: Any) -> float:
    """A number, or a loss, as a number."""
    return float(value)


class Output:
    """What a call of a model gives: `loss`."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __getitem__(self, name: str | int) -> Loss:
        if name not in ("loss", 0):
            raise KeyError(f"{name!r}; a model in training gives `loss` alone")
        return self.loss

    def __repr__(self) -> str:
        return f"<tierflow output {self.loss!r}>"
