"""Settings as a cache key."""

from __future__ import annotations

from typing import Any


class CacheKey:
    """A hashable holder of settings: equal settings, equal key.

    Attributes:
        value: the settings, a mutable dataclass.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        # A dataclass's repr begins with the name of its class.
        self._text = repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheKey) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)
