"""Token ids and labels on their way to a model in training, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ArgumentError, ContextFullError

# The label of a token that is not trained, as transformers has it.
IGNORED = -100


@dataclass
class TokenBatch:
    """Sequences, and after each token the one that is to be predicted there; -1 where nothing is trained."""

    tokens: list[list[int]]
    targets: list[list[int]]

    @classmethod
    def of(cls, input_ids: Any, labels: Any, attention_mask: Any, vocab_size: int, seq_len: int) -> TokenBatch:
        """Labels are those of the tokens themselves; each is predicted by the tokens before it.

        What follows the last label that is trained has no part in the loss, and is left out.
        """
        rows, of_rows = rows_of(input_ids, "input_ids"), rows_of(labels, "labels")
        if len(rows) != len(of_rows):
            raise ArgumentError(f"labels: are of {len(of_rows)} sequences, input_ids of {len(rows)}", argument="labels")
        masks = [None] * len(rows) if attention_mask is None else rows_of(attention_mask, "attention_mask")
        if len(masks) != len(rows):
            raise ArgumentError(f"attention_mask: is of {len(masks)} sequences, input_ids of {len(rows)}", argument="attention_mask")
        batch = cls([], [])
        for number, (row, own, mask) in enumerate(zip(rows, of_rows, masks)):
            n_read = check_row(number, row, own, mask, vocab_size)
            trained = np.flatnonzero(own[1:] != IGNORED)
            if n_read > seq_len:
                reason = f"input_ids: sequence {number} has {n_read} tokens; the model was opened for {seq_len}: raise seq_len, or cut it"
                raise ContextFullError(reason, needed=n_read, available=seq_len)
            if len(trained) > 0:
                end = int(trained[-1]) + 2
                batch.tokens.append(row[:end].tolist())
                batch.targets.append(np.append(np.where(own[1:end] == IGNORED, -1, own[1:end]), -1).tolist())
        if not batch.tokens:
            raise ArgumentError(f"labels: all are {IGNORED}, or of first tokens; no token is trained", argument="labels")
        return batch


def check_row(number: int, row: np.ndarray, labels: np.ndarray, mask: np.ndarray | None, vocab_size: int) -> int:
    """Refuses what cannot be trained; gives how many tokens are read."""
    if len(labels) != len(row):
        raise ArgumentError(f"labels: sequence {number} has {len(labels)}, and {len(row)} tokens", argument="labels")
    n_read = len(row)
    if mask is not None:
        n_read = int(np.count_nonzero(mask))
        if len(mask) != len(row) or not mask[:n_read].all():
            reason = f"attention_mask: of sequence {number} must be ones and then zeros, as many as tokens; pad on the right"
            raise ArgumentError(reason, argument="attention_mask")
        if (labels[n_read:] != IGNORED).any():
            raise ArgumentError(f"labels: sequence {number} trains tokens that its attention_mask hides", argument="labels")
    for name, values in (("input_ids", row), ("labels", labels[labels != IGNORED])):
        outside = values[(values < 0) | (values >= vocab_size)]
        if len(outside) > 0:
            hint = f"; a label that is not trained is {IGNORED}" if name == "labels" else ""
            reason = f"{name}: token {outside[0]} of sequence {number} is outside the vocabulary of {vocab_size} tokens{hint}"
            raise ArgumentError(reason, argument=name, token=int(outside[0]))
    return n_read


def rows_of(value: Any, name: str) -> list[np.ndarray]:
    """A list or an array of whole numbers, or several of them, as arrays."""
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) == 0:
        raise ArgumentError(f"{name}: must be token ids of one sequence or several, not {value!r:.60}", argument=name)
    if not (isinstance(value[0], Sequence) or callable(getattr(value[0], "tolist", None)) and getattr(value[0], "ndim", 0) > 0):
        value = [value]
    return [row_of(row, name) for row in value]


def row_of(value: Any, name: str) -> np.ndarray:
    try:
        row = np.asarray(value.tolist() if callable(getattr(value, "tolist", None)) else value)
    except ValueError:
        row = np.zeros(0)
    if row.ndim != 1 or row.dtype.kind not in "iub" or row.size == 0:
        raise ArgumentError(f"{name}: must be whole numbers, not {value!r:.60}", argument=name)
    return row.astype(np.int64)


def pad_samples(samples: Sequence[Any]) -> Any:
    """One batch from samples of different lengths, as a `collate_fn`: dictionaries with `input_ids` and `labels`, or pairs of them.

    Token ids are filled up with 0, labels with -100, and dictionaries get an `attention_mask`.
    """
    if not isinstance(samples[0], dict):
        return filled([tokens for tokens, _ in samples], 0), filled([labels for _, labels in samples], IGNORED)
    tokens = [sample["input_ids"] for sample in samples]
    labels = [sample["labels"] for sample in samples]
    masks = [np.ones(len(row), np.int64) for row in tokens]
    return {"input_ids": filled(tokens, 0), "labels": filled(labels, IGNORED), "attention_mask": filled(masks, 0)}


def filled(rows: Sequence[Any], value: int) -> np.ndarray:
    """Rows of different lengths as one array."""
    array = np.full((len(rows), max(len(row) for row in rows)), value, np.int64)
    for own, row in zip(array, rows):
        own[: len(row)] = row
    return array
