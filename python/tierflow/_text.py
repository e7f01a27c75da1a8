"""Texts and JSON on their way to the native module."""

from __future__ import annotations

import json
from typing import Any

from .errors import ArgumentError, EncodingError


def utf8(value: Any, argument: str) -> str:
    """`value` as text that UTF-8 can hold; bytes are decoded."""
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise EncodingError(
                f"{argument}: byte {error.start} (0x{value[error.start]:02x}) is no UTF-8; decode it as what it is", argument=argument
            ) from error
    if not isinstance(value, str):
        raise ArgumentError(f"{argument}: must be a text, not {type(value).__name__}", argument=argument)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EncodingError(
            f"{argument}: character {error.start} is the surrogate {value[error.start]!a}, half a character; UTF-8 has none", argument=argument
        ) from error
    return value


def to_json(value: Any, argument: str) -> str:
    """`value` as JSON; bytes in it are decoded, and what has `tolist` (NumPy) or `item` becomes plain numbers."""

    def plain(other: Any) -> Any:
        if isinstance(other, (bytes, bytearray)):
            return utf8(other, argument)
        for name in ("model_dump", "tolist", "to_dict"):
            if callable(getattr(other, name, None)):
                return getattr(other, name)()
        raise ArgumentError(f"{argument}: {type(other).__name__} cannot be written as JSON", argument=argument)

    try:
        text = json.dumps(value, ensure_ascii=False, default=plain, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{argument}: cannot be written as JSON: {error}", argument=argument) from error
    return utf8(text, argument)
